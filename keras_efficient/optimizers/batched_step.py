import math

from keras import ops

from keras_efficient.ops.quantize_8bit import GROUP_SIZE
from keras_efficient.ops.quantize_8bit import join_groups
from keras_efficient.ops.quantize_8bit import scale_shape
from keras_efficient.ops.quantize_8bit import split_groups

# Entries that are worked on at a time: a dozen temporaries of 4 bytes each.
BATCH_SIZE = 2**22


def batched_step(optimizer, gradients, variables, learning_rate):
    """Do the steps of an `Optimizer8bit`, those of many tensors at a time.

    Where each operation is a call from Python, as on PyTorch, a step for each
    of many tensors spends its time there. Groups of 32 know nothing of the
    tensor they are in, so that those of many tensors make one tensor, and so
    do the entries of tensors that keep moments in float32. What a kernel can
    do is left to it.

    Args:
        optimizer: `Optimizer8bit`.
        gradients: List of tensors.
        variables: List of `keras.Variable`, of the same length.
        learning_rate: Float or scalar tensor.
    """
    small, large = [], []
    for gradient, variable in zip(gradients, variables):
        index = optimizer._get_variable_index(variable)
        slots = optimizer._states[index]
        state = [ops.stop_gradient(slot) for slot in slots]
        gradient = ops.stop_gradient(gradient)
        row = index, variable, slots, gradient, state
        if len(slots) == len(optimizer.MOMENTS):
            small.append(row)
            continue
        results = optimizer._step_kernel(
            ops.stop_gradient(variable), gradient, state, learning_rate, index
        )
        # A kernel has overwritten the memory of the variables.
        if results is None:
            large.append(row)
    for batch in _batches(small):
        _step_small(optimizer, batch, learning_rate)
    for batch in _batches(large):
        _step_large(optimizer, batch, learning_rate)


def _batches(rows):
    batch, size = [], 0
    for row in rows:
        size += math.prod(row[1].shape)
        if batch and size > BATCH_SIZE:
            yield batch
            batch, size = [], math.prod(row[1].shape)
        batch.append(row)
    if batch:
        yield batch


def _step_small(optimizer, rows, learning_rate):
    sizes = [math.prod(row[1].shape) for row in rows]
    tensors = [
        (ops.cast(gradient, "float32"), *state)
        for _, _, _, gradient, state in rows
    ]
    gradient, *state = (
        _concatenate([ops.reshape(x, (-1,)) for x in column])
        for column in zip(*tensors)
    )
    results = optimizer._step_float32(gradient, state)
    columns = [_cut(x, sizes) for x in results]
    for row, parts in zip(rows, zip(*columns)):
        shape = row[1].shape
        parts = [ops.reshape(part, shape) for part in parts]
        _assign(optimizer, row, parts, learning_rate)


def _step_large(optimizer, rows, learning_rate):
    groups = {
        row[0]: math.prod(scale_shape(tuple(row[1].shape))) for row in rows
    }
    tensors = []
    for _, _, _, gradient, state in rows:
        gradient = split_groups(ops.cast(gradient, "float32"))
        row = [ops.reshape(gradient, (-1, GROUP_SIZE))]
        for codes, scale in zip(state[::2], state[1::2]):
            row.append(ops.reshape(split_groups(codes), (-1, GROUP_SIZE)))
            row.append(ops.reshape(scale, (-1, 1)))
        tensors.append(row)
    gradient, *state = map(_concatenate, zip(*tensors))
    results = optimizer._step_8bit(gradient, state, groups)
    columns = [_cut(x, list(groups.values())) for x in results]
    for row, parts in zip(rows, zip(*columns)):
        shape = tuple(row[1].shape)
        scales = scale_shape(shape)
        parts = [
            ops.reshape(part, scales)
            if part.shape[-1] == 1
            else join_groups(ops.reshape(part, (*scales, GROUP_SIZE)), shape)
            for part in parts
        ]
        _assign(optimizer, row, parts, learning_rate)


def _assign(optimizer, row, parts, learning_rate):
    _, variable, slots, _, _ = row
    update, *state = parts
    for slot, value in zip(slots, state):
        optimizer.assign(slot, value)
    optimizer._move(variable, update, learning_rate)


def _concatenate(tensors):
    return tensors[0] if len(tensors) == 1 else ops.concatenate(tensors)


def _cut(x, sizes):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return ops.split(x, ends[:-1]) if len(sizes) > 1 else [x]
