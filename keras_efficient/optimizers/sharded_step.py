import keras
from keras import ops

from keras_efficient.ops import dispatch
from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.optimizers.float32_weights import in_float32


def step_on_shards(optimizer, index, gradient, variable, learning_rate):
    """Do the step of a compressed variable, each device on what it has.

    A shard is a tensor like any other to the portable form and to kernels,
    which the partitioner of XLA could not divide. Noise is that of the places
    in the whole tensor: results do not depend on the number of devices.

    Args:
        optimizer: `CompressedOptimizer` that has `Shards` for the variable.
        index: That of the variable.
        gradient: Tensor.
        variable: `keras.Variable`.
        learning_rate: Float or scalar tensor.
    """
    shards, slots = optimizer._shards[index], optimizer._states[index]
    correction = optimizer._weights.corrections[index]

    def step(tensors, scalars):
        value, correction, gradient, *state = tensors
        rate, iterations = scalars
        row = dispatch.Row(
            parameter=value,
            state=tuple(state),
            gradient=gradient,
            seed=index,
            correction=correction,
            decay=optimizer._decay_of(variable) if is_16_bit(variable) else 0.0,
            places=shards.places(),
        )
        with keras.StatelessScope([(optimizer.iterations, iterations)]):
            results = _by_kernel(optimizer, row, rate)
            results = results or _portable(optimizer, row, rate, shards)
        if correction is None:
            value, *state = results
            return [value, None, *state]
        return list(results)

    value, new_correction, state = shards.run(
        step,
        ops.convert_to_tensor(variable),
        None if correction is None else ops.convert_to_tensor(correction),
        gradient,
        [ops.convert_to_tensor(slot) for slot in slots],
        optimizer._axes_before_blocks(slots),
        [
            ops.cast(learning_rate, "float32"),
            ops.convert_to_tensor(optimizer.iterations),
        ],
    )
    if correction is not None:
        optimizer.assign(correction, new_correction)
    for slot, result in zip(slots, state, strict=True):
        optimizer.assign(slot, result)
    optimizer.assign(variable, value)


def _by_kernel(optimizer, row, rate):
    """Return value, correction if there is one and state, or `None`."""
    # Kernels draw the noise of weights by the place in the shard.
    is_random = optimizer.weight_rounding == "stochastic"
    if not optimizer._has_kernel(row.seed) or (
        is_16_bit(row.parameter) and is_random
    ):
        return None
    (results,) = dispatch.do_steps([row], optimizer._kernel_arguments(rate))
    return results


def _portable(optimizer, row, rate, shards):
    update, *state = optimizer._step_compressed(
        row.gradient, list(row.state), row.seed, row.places
    )
    value = row.parameter
    if not is_16_bit(value):
        return value - ops.cast(rate * update, value.dtype), *state
    x = in_float32(value, row.correction)
    x = x - x * row.decay * rate - update * rate
    value, correction = optimizer._weights.rounded(
        x,
        keras.backend.standardize_dtype(value.dtype),
        {row.seed: shards.entries()},
        ops.cast(optimizer.iterations + 1, "int32"),
    )
    corrections = () if correction is None else (correction,)
    return value, *corrections, *state
