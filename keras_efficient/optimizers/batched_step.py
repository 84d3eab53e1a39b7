import math

import keras
from keras import ops

from keras_efficient.ops import dispatch
from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.optimizers.float32_weights import in_float32
from keras_efficient.optimizers.local_shards import local_row
from keras_efficient.optimizers.local_shards import places_of
from keras_efficient.optimizers.local_shards import value_of

# Entries that are worked on at a time: a dozen temporaries of 4 bytes each.
BATCH_SIZE = 2**22


def batched_step(optimizer, gradients, variables, learning_rate):
    """Do the steps of a `CompressedOptimizer`, those of many tensors at a time.

    Where each operation is a call from Python, as on PyTorch, a step for each
    of many tensors spends its time there. Entries of tensors that keep moments
    in float32 know nothing of each other, so that those of many tensors make
    one tensor. What a kernel can do is left to it, and it is for the optimizer
    to say which compressed states can be one.

    Of DTensors the part that is here steps by itself, as any tensor does.

    Args:
        optimizer: `CompressedOptimizer`.
        gradients: List of tensors.
        variables: List of `keras.Variable`, of the same length.
        learning_rate: Float or scalar tensor.
    """
    rate = ops.cast(learning_rate, "float32")
    plain, compressed, for_kernels = [], [], []
    for gradient, variable in zip(gradients, variables):
        index = optimizer._get_variable_index(variable)
        row = index, variable, optimizer._states[index], gradient
        if row[2]:
            row = local_row(optimizer, row)
            if not row[1].value.numel():
                continue  # this rank has nothing of it
        if not optimizer._is_compressed[index]:
            plain.append(row)
        elif optimizer._has_kernel(index):
            for_kernels.append(row)
        else:
            compressed.append(row)
    if for_kernels:
        compressed += _without_kernel(optimizer, for_kernels, rate)
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
    results = dispatch.do_steps(
        [
            optimizer._row(
                index, variable, [slot.value for slot in slots], gradient
            )
            for index, variable, slots, gradient in rows
        ],
        optimizer._kernel_arguments(learning_rate),
    )
    # A kernel overwrites the memory of the variables.
    return [row for row, result in zip(rows, results) if result is None]


def _with_state(rows):
    return [
        (
            index,
            variable,
            slots,
            ops.stop_gradient(gradient),
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
    indices, variables, _, gradients, states = zip(*rows)
    old_states = [*zip(*states)]
    gradient, *state = (
        _join(column, like=states[0][0]) for column in (gradients, *old_states)
    )
    update, *state = optimizer._step_plain(gradient, state, None)
    for old, new in zip(old_states, state, strict=True):
        for tensor, part in _split(new, old):
            tensor.copy_(part)
    # `CompressedOptimizer._move`, for all of them.
    values = [variable.value.detach() for variable in variables]
    moves = zip(indices, variables, _split(learning_rate * update, values))
    alike = {}  # of 16 bits
    for index, variable, (value, part) in moves:
        if is_16_bit(variable):
            key = variable.dtype, optimizer._decay_of(variable)
            row = index, variable, value, part
            alike.setdefault(key, []).append(row)
        else:
            value.sub_(part.to(value.dtype))
    for (_, decay), moved in alike.items():
        _move_16_bit(optimizer, moved, decay, learning_rate)


def _move_16_bit(optimizer, rows, decay, learning_rate):
    """Do `_move` for variables of the same decay and dtype of 16 bits."""
    indices, variables, values, updates = zip(*rows)
    weights = optimizer._weights
    x, update = _join(values, values[0]), _join(updates, updates[0])
    sizes = dict(zip(indices, map(places_of, variables)))
    targets, correction = [values], None
    if weights.rounding == "compensated":
        targets.append(
            [
                value_of(weights.corrections[i], variable)
                for i, variable in zip(indices, variables)
            ]
        )
        correction = _join(targets[1], targets[1][0])
    dtype = keras.backend.standardize_dtype(x.dtype)
    x = in_float32(x, correction)
    x = x - x * decay * learning_rate - update
    step = ops.cast(optimizer.iterations + 1, "int32")
    results = weights.rounded(x, dtype, sizes, step)
    for tensors, result in zip(targets, results):
        for tensor, part in _split(result, tensors):
            tensor.copy_(part)


# In methods of PyTorch's tensors: a call of `keras.ops` for each of hundreds
# of small tensors takes longer than the step itself.


def _join(tensors, like):
    """Copy tensors into one, of the dtype and on the device of `like`."""
    sizes = [x.numel() for x in tensors]
    joined = like.new_empty(sum(sizes))
    for part, x in zip(joined.split(sizes), tensors):
        part.view(x.shape).copy_(x)
    return joined


def _split(joined, tensors):
    """Undo `_join`: pairs of each tensor and what `joined` has for it."""
    parts = joined.split([x.numel() for x in tensors])
    return [(x, part.view(x.shape)) for x, part in zip(tensors, parts)]


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
