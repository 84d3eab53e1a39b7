"""Blocks of which some are trained at a time."""

from keras import ops

from keras_efficient.ops.uniform_noise import uniform_noise
from keras_efficient.optimizers.local_shards import is_divided
from keras_efficient.optimizers.names import path_of


def choose(count, chosen, turn, order, seed):
    """Return the indices of the blocks of one turn, an int32 vector.

    Args:
        count: Integer, the number of blocks.
        chosen: Integer, how many of them.
        turn: int32 scalar tensor, counted from 0.
        order: `"uniform"`, without memory; or `"cycle"`, all blocks in turn
            before any comes again, but for what is left of the last turn.
        seed: Integer.
    """
    first = 0
    if order == "cycle":
        turns = -(-count // chosen)
        turn, first = turn // turns, turn % turns * chosen
    shuffled = ops.argsort(uniform_noise((count,), turn, seed))
    places = (first + ops.arange(chosen, dtype="int32")) % count
    return ops.cast(ops.take(shuffled, places), "int32")


def roles(variables, found, blocks):
    """Return for each place in a block its variables' indices in all blocks.

    Args:
        variables: List of variables.
        found: List of what block each is in, an index or `None`.
        blocks: List of the names of the blocks.

    Raises:
        ValueError: blocks have not the same shapes in the same order, or are
            DTensors.
    """
    for variable, block in zip(variables, found):
        if block is not None and is_divided(variable):
            raise ValueError(
                "`LISA` keeps the state of its blocks in slots, and cannot "
                f"step blocks of DTensors. Received: '{path_of(variable)}', a "
                "DTensor. Take `Adam8bit`, whose state is divided as its "
                "parameters are."
            )
    columns = [
        [i for i, place in enumerate(found) if place == block]
        for block in range(len(blocks))
    ]
    shapes = [[tuple(variables[i].shape) for i in column] for column in columns]
    for block, column, these in zip(blocks, columns, shapes):
        if these != shapes[0]:
            raise ValueError(
                "`blocks` must be alike, with trainable variables of the same "
                f"shapes in the same order. Received: '{blocks[0]}' with "
                f"{[path_of(variables[i]) for i in columns[0]]} of shapes "
                f"{shapes[0]}, and '{block}' with "
                f"{[path_of(variables[i]) for i in column]} of shapes {these}"
            )
    return list(zip(*columns))
