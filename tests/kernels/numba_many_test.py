"""Kernels of many tensors: the bits of those of one, memory left intact."""

import math

import keras
import numpy as np
import pytest

from keras_efficient.kernels import policy
from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import MicroAdamState
from keras_efficient.ops.adam_8bit_arguments import Adam8bitArguments
from keras_efficient.ops.adam_step import adam_biases
from keras_efficient.ops.dispatch import Row
from keras_efficient.ops.dispatch import do_steps
from keras_efficient.ops.micro_adam_arguments import MicroAdamArguments
from keras_efficient.ops.quantize_8bit import is_along_last
from keras_efficient.ops.quantize_8bit import scale_shape

if keras.config.backend() != "torch":
    pytest.skip("one call for many tensors: PyTorch", allow_module_level=True)
numba = pytest.importorskip("numba")
torch = pytest.importorskip("torch")

# Some within a part, some of several parts, some with rows of odd length
SHAPES = [
    *((1,), (123,), (255,), (2**16 + 5,), (0,), (257,), (4097,), (0, 5)),
    *((31,), (33,), (3, 3, 5, 7), (70, 60), (600, 512)),
]
RATE, BLOCK, BUCKET, WINDOW, K = 0.01, 256, 64, 3, 3
BETAS = 0.9, 1 - 0.9, 0.999, 1 - 0.999


class Adam8bit:
    shapes = SHAPES

    @staticmethod
    def zero_state(shape):
        return Adam8bitState(
            torch.zeros(shape, dtype=torch.int8),
            torch.zeros(scale_shape(shape), dtype=torch.float16),
            torch.zeros(shape, dtype=torch.uint8),
            torch.zeros(scale_shape(shape), dtype=torch.float16),
        )

    @staticmethod
    def many(*columns, step=1, **options):
        options = {"learning_rate": RATE, "step": step, **options}
        return do_steps(list(map(Row, *columns)), Adam8bitArguments(**options))

    @staticmethod
    def one(row, step, is_random):
        from keras_efficient.kernels.cpu.adam_8bit import adam_8bit

        shape = tuple(row.parameter.shape)
        rows = math.prod(shape[:-1]) if is_along_last(shape) else 1
        options = np.array([*BETAS, 1e-7], "float32")
        adam_8bit(
            row.parameter.reshape(rows, -1),
            correction_of(row, rows),
            *(x.reshape(rows, -1) for x in (*row.state, row.gradient)),
            RATE,
            *adam_biases(step, 0.9, 0.999),
            step,
            options,
            row.seed,
            np.zeros(0, "int32"),
            np.float32(row.decay),
            is_random,
            False,
        )


class MicroAdam:
    shapes = [shape for shape in SHAPES if math.prod(shape)]

    @staticmethod
    def zero_state(shape):
        size = math.prod(shape)
        blocks, buckets = math.ceil(size / BLOCK), math.ceil(size / BUCKET)
        entries = WINDOW, blocks, K
        return MicroAdamState(
            torch.zeros(entries, dtype=torch.uint8),
            torch.zeros(entries, dtype=torch.bfloat16),
            torch.zeros(WINDOW, dtype=torch.int32),
            torch.zeros((buckets, BUCKET // 2), dtype=torch.uint8),
            torch.zeros((buckets, 1), dtype=torch.bfloat16),
            torch.zeros((buckets, 1), dtype=torch.bfloat16),
            torch.zeros((blocks, 1)),
        )

    @staticmethod
    def many(*columns, step=1, **options):
        arguments = MicroAdamArguments(
            learning_rate=RATE,
            step=step,
            window=WINDOW,
            k=K,
            block_size=BLOCK,
            bucket_size=BUCKET,
            **options,
        )
        return do_steps(list(map(Row, *columns)), arguments)

    @staticmethod
    def one(row, step, is_random):
        from keras_efficient.kernels.cpu.micro_adam import micro_adam

        options = np.array([*BETAS, 1e-7, 0.4, 1 - 0.4], "float32")
        micro_adam(
            row.parameter.reshape(1, -1),
            correction_of(row, 1),
            *row.state,
            row.gradient.reshape(1, -1),
            RATE,
            *adam_biases(step, 0.9, 0.999),
            step,
            options,
            BLOCK,
            row.seed,
            np.zeros(0, "int32"),
            np.float32(row.decay),
            is_random,
            True,
            True,
            False,
        )


each = pytest.mark.parametrize("kernel", [Adam8bit, MicroAdam])


@pytest.fixture(autouse=True)
def kernels_by_default(monkeypatch):
    monkeypatch.setattr(policy, "_chosen", "auto")


@pytest.fixture(params=[1, 2])
def threads(request):
    before = numba.get_num_threads()
    numba.set_num_threads(min(request.param, before))
    yield
    numba.set_num_threads(before)


def make(kernel, dtypes=(torch.float32,), shapes=None):
    """Return parameters, whose dtypes alternate, and their state."""
    torch.manual_seed(0)
    shapes = shapes or kernel.shapes
    parameters = [
        torch.randn(shape).to(dtypes[i % len(dtypes)])
        for i, shape in enumerate(shapes)
    ]
    return parameters, [kernel.zero_state(shape) for shape in shapes]


def make_gradients(parameters):
    return [
        # Its strides are those of the transpose.
        torch.randn(x.shape[::-1]).to(x.dtype).permute(*range(x.ndim)[::-1])
        for x in parameters
    ]


def correction_of(row, rows):
    """As a matrix, without columns if there is none."""
    if row.correction is None:
        return torch.zeros((rows, 0), dtype=torch.int8)
    return row.correction.reshape(rows, -1)


def copy(parameters, states):
    return [
        [x.clone() for x in (parameter, *state)]
        for parameter, state in zip(parameters, states)
    ]


@each
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "compensated"])
def test_same_bits_as_one_after_another(kernel, rounding, threads):
    parameters, states = make(kernel, (torch.float32, torch.bfloat16))
    rows = [
        Row(x, state, gradient, 3 * i, decay=0.1 * (i % 4))
        for i, (x, state, gradient) in enumerate(
            zip(parameters, states, make_gradients(parameters))
        )
    ]
    if rounding == "compensated":
        for i in range(1, len(rows), 2):
            correction = torch.randint(-128, 128, rows[i].parameter.shape)
            rows[i] = rows[i]._replace(correction=correction.to(torch.int8))
    expected = [copied(row) for row in rows]
    assert not all(row.gradient.is_contiguous() for row in rows)
    for step in (1, 2, 5, 6):
        # Those that have no gradient now and then have other ages.
        used = range(step % 2, len(rows), 1 + step % 3)
        results = kernel.many(
            *zip(*(rows[i] for i in used)), step=step, weight_rounding=rounding
        )
        for i, result in zip(used, results, strict=True):
            kernel.one(expected[i], step, rounding == "stochastic")
            given = rows[i].tensors[:-1]
            assert all(x is y for x, y in zip(result, given, strict=True))
        for row, other in zip(rows, expected, strict=True):
            for x, y in zip(row.tensors, other.tensors, strict=True):
                assert x.dtype == y.dtype and torch.equal(x, y)
    assert all(x.any() for row in expected[1:4] for x in row.tensors)


def copied(row):
    """Without the strides of the gradient."""
    state = [x.clone() for x in row.state]
    correction = row.correction
    return row._replace(
        parameter=row.parameter.clone(),
        state=type(row.state)(*state),
        correction=None if correction is None else correction.clone(),
    )


@each
def test_one_call_for_all_of_the_same_dtypes(kernel, monkeypatch):
    from keras_efficient.kernels.cpu import adam_8bit_many
    from keras_efficient.kernels.cpu import micro_adam_many

    calls = []
    for module in (adam_8bit_many, micro_adam_many):
        (name,) = (x for x in vars(module) if x.startswith("_") and "many" in x)
        function = getattr(module, name)

        def spy(*args, function=function):
            calls.append(args)
            return function(*args)

        monkeypatch.setattr(module, name, spy)
    parameters, states = make(kernel, (torch.float32, torch.bfloat16))
    gradients = make_gradients(parameters)
    kernel.many(parameters, states, gradients, range(len(parameters)))
    assert len(calls) == 2


@each
def test_versions_are_those_after_an_operation(kernel):
    parameters, states = make(kernel)
    gradients = make_gradients(parameters)
    versions = [x._version for x in gradients]
    rows = [(x, *state) for x, state in zip(parameters, states)]
    before = [[x._version for x in row] for row in rows]
    kernel.many(parameters, states, gradients, range(len(rows)))
    after = [[x._version for x in row] for row in rows]
    assert after == [[x + 1 for x in row] for row in before]
    assert versions == [x._version for x in gradients]


@each
def test_a_wrong_tensor_changes_nothing(kernel):
    names = ("parameter", *kernel.zero_state((8,))._fields, "gradient")
    for i, name in enumerate(names[1:], start=1):
        for change, error, message in (
            # What does not fit the shape of the indices is named instead.
            (lambda x: x[:-1], ValueError, "must have shape .* and be on"),
            (lambda x: x.double(), TypeError, f"'{name}' must have dtype"),
            (lambda x: x.to("meta"), ValueError, f"'{name}' .*on 'meta'"),
        ):
            if name == "gradient" and error is TypeError:
                continue  # is left to the portable form
            parameters, states = make(kernel, shapes=[(300,), (300,)])
            gradients = make_gradients(parameters)
            row = [parameters[1], *states[1], gradients[1]]
            if error is not TypeError and len(row[i]) < 2:
                row[i] = row[i].squeeze(0)
            row[i] = change(row[i])
            states[1], gradients[1] = type(states[1])(*row[1:-1]), row[-1]
            before = copy(parameters[:1], states[:1])
            with pytest.raises(error, match=message):
                kernel.many(parameters, states, gradients, [0, 1])
            (after,) = copy(parameters[:1], states[:1])
            assert all(map(torch.equal, before[0], after))


@each
def test_what_is_left_to_the_portable_form(kernel):
    parameters, states = make(kernel, shapes=[(40, 64)] * 5)
    gradients = make_gradients(parameters)
    parameters[1] = parameters[1].T.contiguous().T
    parameters[2] = parameters[2].to(torch.float16)
    gradients[3] = gradients[3].to(torch.float64)
    before = copy(parameters, states)
    results = kernel.many(parameters, states, gradients, range(5))
    served = [result is not None for result in results]
    assert served == [True, False, False, False, True]
    for is_served, x, y in zip(served, before, copy(parameters, states)):
        assert all(map(torch.equal, x, y)) != is_served


@each
def test_no_tensors(kernel):
    assert kernel.many([], [], [], []) == []
