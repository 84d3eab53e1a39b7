import math

from keras import ops

from keras_efficient.ops.joined_blocks import concatenate
from keras_efficient.ops.joined_blocks import cut

# Entries that are worked on at a time: a dozen temporaries of 4 bytes each.
BATCH_SIZE = 2**22


def batched_step(optimizer, gradients, variables, learning_rate):
    """Do the steps of a `CompressedOptimizer`, those of many tensors at a time.

    Where each operation is a call from Python, as on PyTorch, a step for each
    of many tensors spends its time there. Entries of tensors that keep moments
    in float32 know nothing of each other, so that those of many tensors make
    one tensor. What a kernel can do is left to it, and it is for the optimizer
    to say which compressed states can be one.

    Args:
        optimizer: `CompressedOptimizer`.
        gradients: List of tensors.
        variables: List of `keras.Variable`, of the same length.
        learning_rate: Float or scalar tensor.
    """
    rate = ops.cast(learning_rate, "float32")
    plain, compressed = [], []
    for gradient, variable in zip(gradients, variables):
        index = optimizer._get_variable_index(variable)
        row = index, variable, optimizer._states[index], gradient
        is_compressed = optimizer._is_compressed[index]
        (compressed if is_compressed else plain).append(row)
    if optimizer.HAS_KERNEL and compressed:
        compressed = _without_kernel(optimizer, compressed, rate)
    plain, compressed = map(_with_state, (plain, compressed))
    if not optimizer.STEPS_BY_ENTRY:
        step_each(optimizer, optimizer._step_plain, plain, rate)
        plain = []
    for batch in batches(plain):
        _step_plain(optimizer, batch, rate)
    for batch in batches(compressed):
        optimizer._step_batch(batch, rate)


def _without_kernel(optimizer, rows, learning_rate):
    """Do the steps that a kernel serves; return the other rows."""
    indices, variables, slots, gradients = zip(*rows)
    results = optimizer._step_kernels(
        [variable.value for variable in variables],
        gradients,
        [[slot.value for slot in state] for state in slots],
        learning_rate,
        optimizer._kernel_options(),
        indices,
    )
    # A kernel overwrites the memory of the variables.
    return [row for row, result in zip(rows, results) if result is None]


def _with_state(rows):
    return [
        (
            *(index, variable, slots, ops.stop_gradient(gradient)),
            [slot.value.detach() for slot in slots],
        )
        for index, variable, slots, gradient in rows
    ]


def batches(rows):
    """Divide rows into lists of at most `BATCH_SIZE` entries where possible."""
    batch, size = [], 0
    for row in rows:
        size += math.prod(row[1].shape)
        if batch and size > BATCH_SIZE:
            yield batch
            batch, size = [], math.prod(row[1].shape)
        batch.append(row)
    if batch:
        yield batch


def _step_plain(optimizer, rows, learning_rate):
    sizes = [math.prod(row[1].shape) for row in rows]
    tensors = [
        (ops.cast(gradient, "float32"), *state)
        for _, _, _, gradient, state in rows
    ]
    gradient, *state = (
        concatenate([ops.reshape(x, (-1,)) for x in column])
        for column in zip(*tensors)
    )
    results = optimizer._step_plain(gradient, state, None)
    columns = [cut(x, sizes) for x in results]
    for row, parts in zip(rows, zip(*columns)):
        shape = row[1].shape
        parts = [ops.reshape(part, shape) for part in parts]
        assign(optimizer, row, parts, learning_rate)


def step_each(optimizer, step, rows, learning_rate):
    """Do the step of each row by itself."""
    for row in rows:
        index, _, _, gradient, state = row
        assign(optimizer, row, step(gradient, state, index), learning_rate)


def assign(optimizer, row, results, learning_rate):
    """Assign the state among `results`, and move the variable."""
    _, variable, slots, _, _ = row
    update, *state = results
    for slot, value in zip(slots, state):
        optimizer.assign(slot, value)
    optimizer._move(variable, update, learning_rate)
