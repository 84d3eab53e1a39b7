"""A run of identical blocks as a loop: compiled once, whatever its length.

The parameters of all blocks are stacked for it, a copy of them that a run
without the loop does not need. Inside of a loop nothing can be moved from the
backward to the forward pass, so there is nothing to hold back either.
"""

import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.functional_call import values
from keras_efficient.autodiff.pure_block import PureBlock
from keras_efficient.autodiff.reconstruction_check import is_finite
from keras_efficient.autodiff.replay import add
from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.backend import nested


def scanned_run(
    blocks, inputs, shared, options, axis=None, exact=False, check=None
):
    """Do what `reversible_run` does, for blocks that differ in values only.

    See there for arguments and results. The code of the first block is used
    for all; no two blocks may share a non-trainable variable.
    """
    first = PureBlock(blocks[0], options, exact)
    params = [block.trainable_variables for block in blocks]
    state = [block.non_trainable_variables for block in blocks]

    def forward(param_values, state_values, inputs, shared):
        def step(streams, values):
            params, state = values
            streams, losses, updates, kept = first.forward(
                shared, params, state, streams
            )
            state = [updates.get(i, value) for i, value in enumerate(state)]
            return streams, (losses, state, kept)

        stacked = _stack(param_values), _stack(state_values)
        streams = first.pack(first.write(split(inputs, axis)))
        samples = check.keep(streams) if check else ()
        streams, (losses, state, kept) = backend.scan(
            step, streams, stacked, length=len(blocks)
        )
        outputs = join(first.read(first.unpack(streams)), axis)
        last = streams if exact else outputs
        seen = (samples, is_finite(streams)) if check else ()
        residuals = param_values, last, shared, kept, seen
        return (outputs, losses, state), residuals

    def backward(residuals, cotangents):
        param_values, last, shared, kept, seen = residuals
        d_outputs, d_losses, _ = cotangents

        def step(carry, values):
            streams, d_streams, d_shared = carry
            params, kept, d_losses = values
            streams, d_streams, d_params, d_seen = first.backward(
                shared, params, kept, streams, d_losses, d_streams
            )
            d_shared = nested.map_structure(add, d_shared, d_seen)
            return (streams, d_streams, d_shared), d_params

        (streams, d_streams, d_shared), d_params = backend.scan(
            step,
            (
                last if exact else split(last, axis),
                split(d_outputs, axis),
                nested.map_structure(_zero_cotangent, shared),
            ),
            (_stack(param_values), kept, d_losses),
            reverse=True,
            length=len(blocks),
        )
        d_params = [[d[i] for d in d_params] for i in range(len(blocks))]
        if check:
            failed = check.failed(seen[0], streams)
            d_params = check.report([failed], seen[1], d_params)
        return d_params, None, join(d_streams, axis), d_shared

    run = backend.custom_vjp(forward, backward)
    outputs, losses, new_state = run(
        list(map(values, params)), list(map(values, state)), inputs, shared
    )
    for i, variables in enumerate(state):
        for variable, new in zip(variables, new_state):
            variable.assign(ops.stop_gradient(new[i]))
    return outputs, [ops.sum(loss) for call in losses for loss in call]


def _stack(blocks):
    """Turn the values of each block into one value with a leading axis."""
    return [ops.stack(values) for values in zip(*blocks)]


def _zero_cotangent(x):
    dtype = keras.backend.standardize_dtype(x.dtype)
    return ops.zeros_like(x) if keras.backend.is_float_dtype(dtype) else None
