"""Steps on the parts of DTensors that are here, on PyTorch."""

import math

from keras import ops

from keras_efficient import backend
from keras_efficient.kernels.ffi.tensors import is_wrapper


class LocalView:
    """The part of a variable that is here, as if it were all of it.

    Args:
        variable: `keras.Variable` whose value is a DTensor that is divided
            along its first axis.
    """

    def __init__(self, variable):
        self.variable = variable
        self.value = backend.dtensors.local(variable.value)
        self.shape = tuple(self.value.shape)
        self.dtype, self.path = variable.dtype, variable.path

    def assign(self, value):
        self.value.copy_(value)

    def assign_sub(self, value):
        self.value.sub_(value)


def is_divided(variable):
    """Return whether the value of a variable is a DTensor."""
    tensors = backend.dtensors
    return tensors is not None and tensors.is_divided(variable.value)


def divided_zeros(variable, axis=0):
    """Return an initializer of state, divided along an axis as a variable."""
    like = variable.value

    def zeros(shape, dtype):
        return backend.dtensors.zeros(shape, dtype, like, axis)

    return zeros


def value_of(state, variable):
    """Return the tensor of some state, what is here if the variable is that."""
    if isinstance(state, LocalView):
        return state.value
    if isinstance(variable, LocalView):
        return backend.dtensors.local(state.value)
    return ops.convert_to_tensor(state)


def places_of(variable):
    """Return the places of entries in the whole, as `uniform_noises` has it."""
    size = math.prod(variable.shape)
    if not isinstance(variable, LocalView):
        return size
    first = first_entry(variable)
    return range(first, first + size)


def first_entry(variable):
    """Return where the first entry of a variable is in the whole tensor."""
    if not isinstance(variable, LocalView):
        return 0
    shape = tuple(variable.variable.shape)
    parts, part = backend.dtensors.division(variable.variable.value)
    rows = min(math.ceil(shape[0] / parts) * part, shape[0]) if shape else 0
    return rows * math.prod(shape[1:])


def local_row(optimizer, row):
    """Return a row of `batched_step` with what is here of each tensor."""
    index, variable, slots, gradient = row
    tensors = backend.dtensors
    x = variable.value
    if tensors.is_divided(x):
        _check_alike(optimizer, variable, gradient, x)
        slots = [LocalView(s) if is_divided(s) else s for s in slots]
        return index, LocalView(variable), slots, tensors.local(gradient)
    for what, y in (("variable", x), ("gradient", gradient)):
        if is_wrapper(y):
            raise TypeError(
                f"`{type(optimizer).__name__}` steps on plain tensors and on "
                f"DTensors, and cannot step a {type(y).__name__} here. "
                f"Received: the {what} of '{variable.path}', a "
                f"{type(x).__name__} with a gradient that is a "
                f"{type(gradient).__name__}. Pass variable and gradient of one "
                "kind, or their local parts, `x.to_local()`."
            )
    return row


def _check_alike(optimizer, variable, gradient, x):
    if not backend.dtensors.is_alike(gradient, x):
        found = getattr(gradient, "placements", type(gradient).__name__)
        raise TypeError(
            f"`{type(optimizer).__name__}` needs gradients that are divided as "
            f"their variables are. Received: '{variable.path}' with placements "
            f"{x.placements} and a gradient with {found}. Redistribute it, "
            "`gradient.redistribute(placements=variable.placements)`."
        )


def check_division(optimizer, variable, is_compressed):
    """Raise an error where a rank cannot step on what it has of a DTensor."""
    x = variable.value
    name, shape = type(optimizer).__name__, tuple(variable.shape)
    division = backend.dtensors.division(x)
    if division is None:
        raise ValueError(
            f"`{name}` steps on DTensors that are divided along their first "
            f"axis only, as `fully_shard` does. Received: '{variable.path}' "
            f"with placements {x.placements}."
        )
    if not is_compressed:
        return
    advice = (
        "Give it plain Adam, by `exclude_layers`, or another number of rows."
    )
    if optimizer._shapes_of_state(shape) is None:
        raise ValueError(
            f"`{name}` needs all of a tensor for its step, and cannot step on "
            f"DTensors. Received: '{variable.path}', a DTensor of shape "
            f"{shape}. {advice}"
        )
    if any(
        not _is_divided_alike(optimizer, shape, division[0], part)
        for part in range(division[0])
    ):
        raise ValueError(
            f"`{name}` cannot divide the state of '{variable.path}' among "
            f"{division[0]} ranks: its blocks do not end where the parts do. "
            f"Received: a DTensor of shape {shape}. {advice}"
        )


def _is_divided_alike(optimizer, shape, parts, part):
    """Return whether a part of the state is the state of a part."""
    wanted = optimizer._shapes_of_state(_part_of(shape, 0, parts, part))
    wholes = optimizer._shapes_of_state(shape)
    axes = optimizer._axes_before_blocks(wholes)
    return all(
        axis is None or _part_of(whole, axis, parts, part) == tuple(found)
        for whole, axis, found in zip(wholes, axes, wanted)
        if math.prod(found) or math.prod(_part_of(whole, axis, parts, part))
    )


def _part_of(shape, axis, parts, part):
    """Return the shape of a part, as DTensors have it."""
    if axis is None:
        return shape
    size = math.ceil(shape[axis] / parts)
    size = min(size, max(0, shape[axis] - part * size))
    return *shape[:axis], size, *shape[axis + 1 :]
