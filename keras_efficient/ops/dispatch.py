"""Which kernel does the steps of an algorithm, and the call of it.

An optimizer calls `do_steps` with a `Row` for each tensor and the record of
the arguments that all of them share, `MicroAdamArguments` for instance. The
function of that name in a module of `KERNELS` gets the same two. It returns,
for each row, the new parameter and state in one tuple; or `None`, if it is not
written for these arguments. Such a record has

- `ALGORITHM`, its name in `KERNELS`;
- `DTYPES`, a dict from the names of a row's tensors to the names of the dtypes
  that they may have;
- `shapes(shape)`, what the shapes of a row's tensors must be, given that of the
  parameter; `None` where no kernel is needed.
"""

import importlib
import math
from typing import Any
from typing import NamedTuple

import keras

from keras_efficient.kernels import policy
from keras_efficient.kernels.ffi.tensors import device_of
from keras_efficient.kernels.ffi.tensors import framework_of
from keras_efficient.kernels.ffi.tensors import untraced
from keras_efficient.kernels.ffi.tensors import why_not_plain

# Algorithm, kernel, framework: module of `keras_efficient.kernels`. They are
# imported when they are needed, since they import their compilers.
KERNELS = {
    ("adam_8bit", "numba", "jax"): "cpu.adam_8bit",
    ("adam_8bit", "numba", "numpy"): "cpu.adam_8bit",
    ("adam_8bit", "numba", "tensorflow"): "cpu.adam_8bit",
    ("adam_8bit", "numba", "torch"): "cpu.adam_8bit_many",
    ("adam_8bit", "triton", "torch"): "gpu.adam_8bit",
    ("micro_adam", "numba", "jax"): "cpu.micro_adam",
    ("micro_adam", "numba", "numpy"): "cpu.micro_adam",
    ("micro_adam", "numba", "tensorflow"): "cpu.micro_adam",
    ("micro_adam", "numba", "torch"): "cpu.micro_adam_many",
    ("micro_adam", "triton", "torch"): "gpu.micro_adam",
}
# Of parameters and gradients; others are left to the portable form.
FLOATS = ("float32", "bfloat16")


class Row(NamedTuple):
    """A tensor to step. On PyTorch all but the gradient is overwritten."""

    parameter: Any
    state: tuple  # of tensors
    gradient: Any
    seed: int  # different for each tensor
    correction: Any = None  # int8 tensor, of a parameter of 16 bits
    decay: float = 0.0  # of the weight, for a parameter of 16 bits
    places: Any = None  # int32 tensor, of a shard: where its blocks are in all
    first: int = 0  # on PyTorch, of a shard: where its first entry is in all

    @property
    def corrections(self):
        return () if self.correction is None else (self.correction,)

    @property
    def tensors(self):
        return self.parameter, *self.corrections, *self.state, self.gradient


@untraced
def do_steps(rows, arguments):
    """Do the steps of tensors in kernels, where one serves them.

    All rows are checked before the first one is changed.

    Args:
        rows: List of `Row`.
        arguments: Record of the algorithm.

    Returns:
        List with the new parameter, correction if there is one, and state of
        each row in one tuple, or `None` where no kernel serves it.

    Raises:
        ValueError: a tensor has another shape than its parameter asks for, or
            is on another device.
        TypeError: a tensor has another dtype.
        RuntimeError: kernels that the user asked for cannot serve these.
    """
    framework = framework_of([row.parameter for row in rows])
    # The partitioner of XLA cannot divide a kernel; on a shard it has not to.
    if keras.distribution.distribution() is not None:
        if framework == "jax" and any(row.places is None for row in rows):
            return [None] * len(rows)
    calls = []
    for (device, _), indices in _group(rows, arguments, framework).items():
        group = [rows[i] for i in indices]
        kernel = policy.choose_for(framework, getattr(device, "type", device))
        module = KERNELS.get((arguments.ALGORITHM, kernel, framework))
        if module:
            _check_dtypes(group[0], arguments)
            for row in group:
                _check(row, arguments, device)
            calls.append((kernel, module, group, indices))
    results = [None] * len(rows)
    for kernel, module, group, indices in calls:
        try:
            served = importlib.import_module(
                f"keras_efficient.kernels.{module}"
            ).do_steps(group, arguments)
        # Whatever a compiler or a driver may raise.
        except Exception as error:
            if not policy.give_up(kernel, framework, error):
                raise
            served = None
        for i, result in zip(indices, served or []):
            results[i] = result
    return results


def _group(rows, arguments, framework):
    """Divide the indices of rows by device and dtypes, for a call each.

    Those that are left to the portable form are in no group.
    """
    groups = {}
    for i, row in enumerate(rows):
        tensors = row.tensors
        if arguments.shapes(tuple(row.parameter.shape)) is None:
            continue
        if framework == "torch":
            reason = next(filter(None, map(why_not_plain, tensors)), None)
            if reason:
                policy.refuse(reason)
                continue
            if not all([x.is_contiguous() for x in tensors[:-1]]):
                continue
            device = row.parameter.device
        else:
            device = device_of(tensors, framework)
        key = device, tuple([x.dtype for x in tensors])
        groups.setdefault(key, []).append(i)
    return {
        (device, dtypes): indices
        for (device, dtypes), indices in groups.items()
        if _name(dtypes[0]) in FLOATS and _name(dtypes[-1]) in FLOATS
    }


def _name(dtype):
    return keras.backend.standardize_dtype(dtype)


def _with_correction(row, values, correction):
    """Add what is to be said of the correction to a list for all tensors."""
    first, *others = values
    return [first, *(correction for _ in row.corrections), *others]


def _check_dtypes(row, arguments):
    correction = "correction", ("int8",)
    dtypes = _with_correction(row, arguments.DTYPES.items(), correction)
    for x, (name, allowed) in zip(row.tensors, dtypes, strict=True):
        if _name(x.dtype) not in allowed:
            raise TypeError(
                f"'{name}' must have dtype {' or '.join(allowed)}. "
                f"Received: {_name(x.dtype)}"
            )


def _is_flat(x, shape):
    """Return whether it is of that shape, but for how its rows are counted."""
    rows = math.prod(shape[:-1])
    return len(x.shape) > 1 and (math.prod(x.shape[:-1]), x.shape[-1]) == (
        rows,
        shape[-1],
    )


def _check(row, arguments, device):
    """Raise an error where a kernel would leave the memory of a tensor."""
    shape = tuple(row.parameter.shape)
    shapes = _with_correction(row, arguments.shapes(shape), shape)
    names = _with_correction(row, arguments.DTYPES, "correction")
    for x, shape, name in zip(row.tensors, shapes, names, strict=True):
        # A name, of JAX or TensorFlow, stands for all devices of a kind.
        found = device if isinstance(device, str) else x.device
        is_right = tuple(x.shape) == shape or _is_flat(x, shape)
        if not is_right or found != device:
            raise ValueError(
                f"'{name}' must have shape {shape} and be on '{device}', as "
                f"its parameter. Received: shape {tuple(x.shape)} on '{found}'"
            )
