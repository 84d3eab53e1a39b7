import math

import numpy as np
from keras import ops


class JoinedBlocks:
    """The blocks of several tensors, one after another.

    Each tensor is filled up with zeros to whole blocks, so that blocks of all
    of them make one tensor of shape `(blocks, block_size)`.

    Args:
        shapes: List of the shapes of the tensors.
        block_size: Integer.
    """

    def __init__(self, shapes, block_size):
        self.shapes = [tuple(shape) for shape in shapes]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.block_size = block_size
        self.blocks = [math.ceil(size / block_size) for size in self.sizes]

    def counts(self):
        """Return how many entries of each block are not filling, `(., 1)`."""
        counts = np.full((sum(self.blocks), 1), self.block_size, "float32")
        for end, blocks, size in zip(
            np.cumsum(self.blocks), self.blocks, self.sizes
        ):
            counts[end - 1 : end] -= blocks * self.block_size - size
        # A tensor of a GPU takes no array beside it.
        return ops.convert_to_tensor(counts)

    def join(self, tensors):
        """Join float32 tensors of the shapes, `(blocks, block_size)`."""
        flat = [
            _fill(ops.reshape(x, (-1,)), blocks * self.block_size)
            for x, blocks in zip(tensors, self.blocks)
        ]
        return ops.reshape(concatenate(flat), (-1, self.block_size))

    def split(self, x):
        """Undo `join`."""
        return [
            ops.reshape(ops.reshape(part, (-1,))[:size], shape)
            for part, size, shape in zip(
                cut(x, self.blocks), self.sizes, self.shapes
            )
        ]

    def join_rows(self, tensors, rows_a_block):
        """Join tensors that have `rows_a_block` rows for each block."""
        return concatenate(
            [
                _fill(x, blocks * rows_a_block)
                for x, blocks in zip(tensors, self.blocks)
            ]
        )

    def split_rows(self, x, like):
        """Undo `join_rows`; `like` are tensors with as many rows."""
        parts = cut(x, [self._rows(x, blocks) for blocks in self.blocks])
        return [part[: y.shape[0]] for part, y in zip(parts, like)]

    def _rows(self, x, blocks):
        return blocks * (x.shape[0] // sum(self.blocks)) if blocks else 0


def concatenate(tensors, axis=0):
    """Concatenate, without a copy of one tensor."""
    return tensors[0] if len(tensors) == 1 else ops.concatenate(tensors, axis)


def cut(x, sizes, axis=0):
    """Undo `concatenate`."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return ops.split(x, ends[:-1], axis) if len(sizes) > 1 else [x]


def _fill(x, rows):
    missing = rows - x.shape[0]
    if not missing:
        return x
    return ops.pad(x, [[0, missing]] + [[0, 0]] * (len(x.shape) - 1))


def at_indices(indices, values, block_size):
    """Sum `values`, of shape `(..., blocks, k)`, into their places."""
    blocks = indices.shape[-2]
    if not blocks:
        return ops.zeros((0, block_size))
    first = ops.arange(blocks, dtype="int32")[:, None] * block_size
    places = ops.reshape(ops.cast(indices, "int32") + first, (-1,))
    values = ops.reshape(ops.cast(values, "float32"), (-1,))
    total = ops.segment_sum(values, places, num_segments=blocks * block_size)
    return ops.reshape(total, (blocks, block_size))
