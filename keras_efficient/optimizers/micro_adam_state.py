"""The state of MicroAdam: its variables, and where their blocks lie."""

import math

from keras_efficient.ops import MicroAdamState
from keras_efficient.ops.micro_adam_arguments import block_axes
from keras_efficient.ops.micro_adam_arguments import flat_shapes
from keras_efficient.optimizers.local_shards import first_entry
from keras_efficient.optimizers.state_layout import Shards

# Axes of each state before those of its blocks; `None` for what has none.
BEFORE_BLOCKS = (1, 1, None, 0, 0, 0, 0)


def add_state(optimizer, variable, shapes, shards):
    """Return the `MicroAdamState` of a variable, new variables.

    Args:
        optimizer: `MicroAdam`.
        variable: `keras.Variable`.
        shapes: `MicroAdamState` of shapes.
        shards: `Shards` of the variable, or `None`.
    """
    dtypes = MicroAdamState(
        indices="uint8" if optimizer.block_size <= 256 else "int16",
        values=optimizer.value_dtype,
        written="int32",
        codes="uint8",
        low="bfloat16",
        high="bfloat16",
        velocity="float32",
    )
    slots = []
    for name, before, *slot in zip(
        MicroAdamState._fields, BEFORE_BLOCKS, shapes, dtypes
    ):
        layout = None
        if shards and before is not None:
            layout = shards.layout(before)
        places = None if before is None else (before,)
        slots.append(
            optimizer._add(variable, name, *slot, layout=layout, places=places)
        )
    return MicroAdamState(*slots)


def block_shards(variable, block_size, zero):
    """Return the `Shards` of blocks; `None` where these are not whole."""
    shape = tuple(variable.shape)
    blocks = block_axes(shape, block_size)
    if blocks:
        return Shards(variable, blocks, shape, zero)
    blocks, rest = divmod(math.prod(shape), block_size)
    if not rest:  # they straddle rows
        return Shards(variable, (blocks,), (blocks, block_size), zero)
    # The last one is not full: in one piece, if that was to be.
    shards = Shards(variable, (blocks + 1,), shape, zero, parts=(1,))
    return shards if shards.is_divided else None


def flat_state_shapes(optimizer):
    """Return the flat shapes of state that has others, as files have it."""
    places = {id(v): i for i, v in enumerate(optimizer.variables)}
    return {
        places[id(slot)]: shape
        for slots in optimizer._states
        if len(slots) == len(MicroAdamState._fields)
        for slot, shape in zip(
            slots, flat_shapes([tuple(slot.shape) for slot in slots])
        )
        if tuple(slot.shape) != shape
    }


def places_of_blocks(variable, block_size):
    """Return where the entries of whole blocks are in all, as a range."""
    blocks = math.ceil(math.prod(variable.shape) / block_size)
    first = first_entry(variable)
    return range(first, first + blocks * block_size)
