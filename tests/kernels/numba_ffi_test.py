"""Numba kernels on the tensors of each backend: values, memory, threads."""

import concurrent.futures
import functools
import itertools

import keras
import numpy as np
import pytest

from keras_efficient.kernels import numba_ffi

numba = pytest.importorskip("numba")

BACKEND = keras.config.backend()
if BACKEND not in ("jax", "tensorflow", "torch"):
    pytest.skip("no tensors of its own", allow_module_level=True)

SHAPES = [(), (0,), (1,), (5, 7), (3, 0, 2), (123,), (4097,), (2, 3, 4, 5)]
DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "bfloat16", "float32"),
]
BITS = {"bfloat16": "uint16", "float16": "uint16"}


@numba_ffi(
    in_place=("p", "m"),
    outputs={"step": "p"},
    dtypes={"p": "float32", "rate": "float32"},
)
def momentum(p, m, g, rate, step):
    p, m, g, step = (
        p.reshape(-1),
        m.reshape(-1),
        g.reshape(-1),
        step.reshape(-1),
    )
    for i in range(p.size):
        m[i] = 0.5 * m[i] + g[i]
        step[i] = rate[0] * m[i]
        p[i] -= step[i]


@numba_ffi(in_place="x", outputs={"y": lambda x: (x.shape[::-1], "float32")})
def twice_plus_one(x, y):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[j, i] = x[i, j]
            x[i, j] = 2 * x[i, j] + 1


@numba_ffi(in_place="x", parallel=True)
def add_rounds(x):
    for _ in range(100):
        for i in numba.prange(x.size):
            x[i] += 1


@numba_ffi(in_place="x", outputs={"address": ((2,), "int32")})
def increment(x, address):
    for i in range(x.size):
        x[i] += 1
    address[0] = x.ctypes.data & 0x7FFFFFFF
    address[1] = x.ctypes.data >> 31


@numba_ffi(outputs={"address": ((2,), "int32")})
def where(x, address):
    address[0] = x.ctypes.data & 0x7FFFFFFF
    address[1] = x.ctypes.data >> 31


@numba_ffi(
    outputs={"y": "x", "one": lambda x: ((), x.dtype)}, dtypes={"x": DTYPES}
)
def copy(x, y, one):
    y[:] = x
    one[0] = x[1]


def modes():
    if BACKEND == "jax":
        import jax

        return {"eager": lambda f: f, "jit": jax.jit}
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return {
            "eager": lambda f: f,
            "graph": tf.function,
            "xla": tf.function(jit_compile=True),
        }
    return {"eager": lambda f: f}


each_mode = pytest.mark.parametrize("mode", modes())


def tensor(x, dtype=None):
    return keras.ops.convert_to_tensor(x, dtype)


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def address_of(words):
    low, high = map(int, numpy(words))
    return low | high << 31


@each_mode
@pytest.mark.parametrize("shape", SHAPES)
def test_values(mode, shape):
    rng = np.random.default_rng(0)
    p, m, g = rng.normal(size=(3, *shape)).astype("float32")
    call = modes()[mode](lambda *args: momentum(*args, 0.25))
    results = call(tensor(p.copy()), tensor(m.copy()), tensor(g))
    expected_m = np.float32(0.5) * m + g
    step = np.float32(0.25) * expected_m
    for result, expected in zip(results, (p - step, expected_m, step)):
        assert numpy(result).shape == shape
        np.testing.assert_allclose(numpy(result), expected, rtol=1e-6)


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(mode, dtype):
    values = [0.0, 1.0, 2.0]
    if BACKEND == "torch" and dtype in ("uint16", "uint32"):
        import torch

        x = torch.tensor(values, dtype=getattr(torch, dtype))
    else:
        x = tensor(values, dtype)
    y, one = modes()[mode](copy)(x)
    assert y.dtype == one.dtype == x.dtype
    assert tuple(one.shape) == ()
    y, one = (keras.ops.cast(result, "float32") for result in (y, one))
    assert numpy(y).tolist() == [0, 1, 1 + (dtype != "bool")]
    assert numpy(one) == 1
    compiled = copy.numba_kernel.dispatcher().signatures
    assert BITS.get(dtype, dtype) in [str(args[0].dtype) for args in compiled]


@functools.lru_cache
def kernel_of_many():
    """Its signature is `(a0, ..., a9, b0, ..., b9, c0, ..., c9)`."""
    names = [[f"{kind}{i}" for i in range(10)] for kind in "abc"]
    lines = [f"    {c}[:] = {a} + {b}[0]" for a, b, c in zip(*names)]
    lines += [f"    {a} *= 2" for a in names[0]]
    scope = {}
    parameters = ", ".join(itertools.chain(*names))
    exec("\n".join([f"def kernel({parameters}):", *lines]), scope)
    outputs = dict(zip(names[2], names[0]))
    return numba_ffi(scope["kernel"], in_place=names[0], outputs=outputs)


@each_mode
def test_many_buffers(mode):
    inputs = [tensor(np.full(i + 1, i, "float32")) for i in range(10)]
    numbers = [tensor(float(i)) for i in range(10)]
    results = modes()[mode](kernel_of_many())(*inputs, *numbers)
    assert len(results) == 20
    for i, (doubled, total) in enumerate(zip(results, results[10:])):
        assert numpy(doubled).tolist() == [2 * i] * (i + 1)
        assert numpy(total).tolist() == [2 * i] * (i + 1)


@each_mode
def test_buffers_are_row_major(mode):
    x = np.arange(6, dtype="float32").reshape(2, 3)
    call = modes()[mode](lambda x: twice_plus_one(keras.ops.transpose(x) + 0.0))
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="contiguous"):
            twice_plus_one(tensor(x).T)
        # What is only read is copied.
        m = momentum(tensor(x), tensor(x), tensor(x.T.copy()).T, 1.0)[1]
        np.testing.assert_array_equal(numpy(m), 1.5 * x)
        return
    y, transposed = call(tensor(x))
    np.testing.assert_array_equal(numpy(y), 2 * x.T + 1)
    np.testing.assert_array_equal(numpy(transposed), x)


@each_mode
def test_other_arguments(mode):
    """Arrays of NumPy and numbers beside at least one tensor."""

    def call(p):
        return momentum(p, np.ones(3, "f"), np.arange(3.0, dtype="f"), 1.0)

    p, _, _ = modes()[mode](call)(tensor(np.ones(3, "float32")))
    assert numpy(p).tolist() == [0.5, -0.5, -1.5]


def test_numpy():
    x = np.ones(3, "float32")
    y, address = increment(x)
    assert y is x
    assert address_of(address) == x.ctypes.data
    assert x.tolist() == [2, 2, 2]
    count = np.zeros((), "float32")
    assert increment(count)[0] is count
    assert count == 1
    x.flags.writeable = False
    with pytest.raises(ValueError, match="'x' is overwritten .* writeable=Fal"):
        increment(x)


def test_arguments_keep_their_value_on_jax_and_tensorflow():
    x = tensor(np.ones(3, "float32"))
    y, _ = increment(x)
    assert numpy(y).tolist() == [2, 2, 2]
    assert numpy(x).tolist() == ([2, 2, 2] if BACKEND == "torch" else [1, 1, 1])
    if BACKEND == "torch":
        assert y is x


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch")
def test_in_place_on_torch():
    import torch

    x = torch.ones(3)
    version = x._version
    _, address = increment(x)
    assert address_of(address) == x.data_ptr()
    assert x._version == version + 1
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(RuntimeError, match="'increment' has no derivative"):
        increment(weight)
    increment(weight.detach())
    with torch.no_grad():
        increment(weight)
    assert weight.tolist() == [3, 3, 3]
    compiled = torch.compile(lambda x: increment(x + 1)[0] * 2, backend="eager")
    assert compiled(torch.ones(3)).tolist() == [6, 6, 6]


@pytest.mark.skipif(BACKEND != "jax", reason="JAX")
def test_donated_arrays_are_overwritten_on_jax():
    import jax

    donated = jax.jit(increment, donate_argnums=0)
    x = jax.numpy.ones(1000)
    before = x.unsafe_buffer_pointer()
    y, address = donated(x)
    assert x.is_deleted()
    assert y.unsafe_buffer_pointer() == before == address_of(address)
    analysis = donated.lower(y).compile().memory_analysis()
    assert analysis.alias_size_in_bytes == 4000
    assert analysis.temp_size_in_bytes < 1000


@pytest.mark.skipif(BACKEND != "jax", reason="JAX")
def test_results_are_right_also_if_xla_copies(monkeypatch):
    import jax

    ffi_call = jax.ffi.ffi_call

    def without_aliases(*args, input_output_aliases, **kwargs):
        return ffi_call(*args, **kwargs)

    monkeypatch.setattr(jax.ffi, "ffi_call", without_aliases)
    y, address = jax.jit(increment)(jax.numpy.ones((3, 1)))
    assert y.tolist() == [[2], [2], [2]]


@pytest.mark.skipif(BACKEND != "jax", reason="JAX")
def test_transformations_on_jax():
    import jax

    x = jax.numpy.arange(6.0).reshape(2, 3)
    y = jax.jit(jax.vmap(lambda x: increment(x)[0]))(x)
    np.testing.assert_array_equal(y, x + 1)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda x: increment(x)[0].sum())(x[0])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow")
def test_variables_are_overwritten_on_tensorflow():
    import tensorflow as tf

    x = tf.Variable(tf.ones(1000))

    @tf.function(jit_compile=True)
    def step():
        y, address = increment(x)
        x.assign(y)
        return address

    # The first step moves the variable to memory of XLA's.
    written = [address_of(step()) for _ in range(2)]
    read = address_of(tf.function(where, jit_compile=True)(x))
    written.append(address_of(step()))
    assert written[1] == read == written[2]
    assert x.numpy().tolist() == [4] * 1000
    with pytest.raises(RuntimeError, match="'increment' has no derivative"):
        with tf.GradientTape() as tape:
            y = increment(x)[0]
        tape.gradient(y, x)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow")
def test_a_graph_may_be_the_first_to_compile():
    """AutoGraph does not get to see Numba."""
    import tensorflow as tf

    @numba_ffi(outputs={"y": "x"}, parallel=True)
    def double(x, y):
        for i in numba.prange(x.size):
            y[i] = 2 * x[i]

    twice = tf.function(lambda x: double(x) + 0.0)
    assert numpy(twice(tf.ones(3))).tolist() == [2, 2, 2]


@pytest.mark.quick
@each_mode
def test_steps_of_a_loop(mode):
    """As an optimizer does: the state goes through a compiled loop."""

    def train(p, m):
        def body(i, state):
            p, m, _ = momentum(*state, state[0] * 0.5, 0.1)
            return p, m

        return keras.ops.fori_loop(0, 10, body, (p, m))

    p, m = np.ones((2, 5), "float32"), np.zeros((2, 5), "float32")
    result, _ = modes()[mode](train)(tensor(p.copy()), tensor(m.copy()))
    for _ in range(10):
        m = 0.5 * m + 0.5 * p
        p = p - np.float32(0.1) * m
    np.testing.assert_allclose(numpy(result), p, rtol=1e-5)


@each_mode
def test_two_threads(mode):
    call = modes()[mode](add_rounds)
    call(tensor(np.zeros(2000, "float32")))

    def work(i):
        return numpy(call(tensor(np.full(2000, i, "float32"))))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for i, x in enumerate(pool.map(work, range(10))):
            assert (x == 100 + i).all()


@each_mode
def test_two_kernels_at_once_in_a_program(mode):
    def both(x, y):
        return add_rounds(x), add_rounds(y)

    x, y = np.zeros(2000, "float32"), np.ones(2000, "float32")
    x, y = modes()[mode](both)(tensor(x), tensor(y))
    assert (numpy(x) == 100).all() and (numpy(y) == 101).all()
