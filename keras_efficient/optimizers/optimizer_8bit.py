import math

from keras import ops

from keras_efficient.ops.joined_blocks import concatenate
from keras_efficient.ops.joined_blocks import cut
from keras_efficient.ops.quantize_8bit import GROUP_SIZE
from keras_efficient.ops.quantize_8bit import first_group
from keras_efficient.ops.quantize_8bit import join_groups
from keras_efficient.ops.quantize_8bit import scale_shape
from keras_efficient.ops.quantize_8bit import split_groups
from keras_efficient.optimizers.batched_step import assign
from keras_efficient.optimizers.compressed_optimizer import CompressedOptimizer
from keras_efficient.optimizers.local_shards import first_entry
from keras_efficient.optimizers.state_layout import code_shards


class Optimizer8bit(CompressedOptimizer):
    """Base class of the optimizers that keep one byte a moment.

    A subclass names its moments in `MOMENTS` and writes two steps, for the
    state of tensors of at least `min_size` elements (codes and scale of each
    moment, in turn) and for that of smaller ones (each moment in float32).

    Codes have the shape of the parameter and, under
    `keras.distribution`, its layout; so have scales, where whole groups of 32
    allow it.
    """

    MOMENTS = {}  # name: dtype of its codes

    def _is_compressible(self, variable):
        # Codes of an empty tensor are empty.
        return math.prod(variable.shape) >= self.min_size

    def _add_compressed_state(self, variable):
        return add_codes(self, variable, self.MOMENTS)

    def _add_plain_state(self, variable):
        return tuple(
            self._add(variable, name, variable.shape) for name in self.MOMENTS
        )

    def _find_shards(self, variable):
        return code_shards(variable, self.zero)

    def _shapes_of_state(self, shape):
        return [shape, scale_shape(shape)] * len(self.MOMENTS)

    def _step_compressed(self, gradient, state, index, places=None):
        size = math.prod(state[1].shape) if places is None else places
        groups = {index: size}
        return self._step_8bit(gradient, state, groups)

    def _step_8bit(self, gradient, state, groups):
        """Return the update and the new codes and scales.

        `groups` tells of the index of each variable that the gradient is made
        of how many groups it has, or where they are in all: what
        `uniform_noises` takes.
        """
        raise NotImplementedError

    def _step_batch(self, rows, learning_rate):
        # Groups of 32 know nothing of the tensor they are in.
        groups = {row[0]: _groups_of(row[1]) for row in rows}
        tensors = []
        for _, _, _, gradient, state in rows:
            gradient = split_groups(ops.cast(gradient, "float32"))
            row = [ops.reshape(gradient, (-1, GROUP_SIZE))]
            for codes, scale in zip(state[::2], state[1::2]):
                row.append(ops.reshape(split_groups(codes), (-1, GROUP_SIZE)))
                row.append(ops.reshape(scale, (-1, 1)))
            tensors.append(row)
        gradient, *state = map(concatenate, zip(*tensors))
        results = self._step_8bit(gradient, state, groups)
        columns = [cut(x, list(map(len, groups.values()))) for x in results]
        for row, parts in zip(rows, zip(*columns)):
            shape = tuple(row[1].shape)
            parts = [_join(part, shape) for part in parts]
            assign(self, row, parts, learning_rate)

    def get_config(self):
        return {**super().get_config(), "min_size": self.min_size}


def add_codes(optimizer, variable, moments):
    """Return codes and scale of each of some moments, new variables.

    `moments` is a dict from their names to the dtypes of their codes.
    """
    shape = tuple(variable.shape)
    shards = code_shards(variable, optimizer.zero)
    layout = shards and shards.layout()
    scales = scale_shape(shape), "float16", layout
    slots = []
    for name, dtype in moments.items():
        codes = f"{name}_codes", shape, dtype, layout
        slots.append(optimizer._add(variable, *codes))
        scale = optimizer._add(variable, f"{name}_scale", *scales, places=(0,))
        slots.append(scale)
    return tuple(slots)


def _groups_of(variable):
    """Return where the groups of a variable are in all, as a range."""
    shape = tuple(variable.shape)
    first = first_group(shape, first_entry(variable))
    return range(first, first + math.prod(scale_shape(shape)))


def _join(groups, shape):
    """Give entries or scales of groups the shape they have in a tensor."""
    scales = scale_shape(shape)
    if groups.shape[-1] == 1:
        return ops.reshape(groups, scales)
    return join_groups(ops.reshape(groups, (*scales, GROUP_SIZE)), shape)
