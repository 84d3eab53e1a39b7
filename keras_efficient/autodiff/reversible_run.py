"""The walk over a run of reversible blocks: one custom-gradient node.

The forward pass keeps the outputs of the last block and, for each call of a
sub-layer, the few numbers that it changed (batch statistics, seeds). The
backward pass walks the blocks in reverse. There each sub-layer is evaluated
once: the value reconstructs the inputs of its block, the pullback
differentiates it. Forward 1, evaluation 1, pullback 2 units of work: 4,
against 3 for a plain run, at a memory that does not depend on depth.

A block that cannot reconstruct its inputs may keep them (`keeps_inputs`);
its sub-layers are still evaluated anew.
"""

from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.functional_call import values
from keras_efficient.autodiff.pure_block import PureBlock
from keras_efficient.autodiff.reconstruction_check import is_finite
from keras_efficient.autodiff.replay import add
from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.backend import nested


def reversible_run(
    blocks, inputs, shared, options, axis=None, exact=False, check=None
):
    """Run `blocks` over `inputs` without keeping what lies between them.

    Args:
        blocks: Built layers as `keras_efficient.layers.ReversibleLayer`.
        inputs: Nested structure of tensors, what the first block takes; one
            tensor if `axis` is given.
        shared: Dictionary of further call arguments for all sub-layers,
            nested structures of tensors.
        options: Dictionary of call arguments for sub-layers that are not
            tensors, among them `"training"`.
        axis: Integer or `None`. Where to split one tensor into two streams
            for the blocks. (Joined again, they are kept once, as the output.)
        exact: Python bool. Whether blocks see streams as fixed-point
            integers.
        check: `ReconstructionCheck` or `None`.

    Returns:
        `(outputs, losses)`: the outputs of the last block and the losses
        that sub-layers added. Non-trainable variables have been updated.
    """
    blocks = [PureBlock(block, options, exact) for block in blocks]
    params = _unique(v for block in blocks for v in block.params)
    state = _unique(v for block in blocks for v in block.state)
    params_of = _positions(params, [block.params for block in blocks])
    state_of = _positions(state, [block.state for block in blocks])
    inputs_kept = blocks[-1].block.keeps_inputs

    def forward(param_values, state_values, inputs, shared):
        state_values, losses, keeps, updates = list(state_values), [], [], {}
        first, final = blocks[0], blocks[-1]
        streams = first.pack(first.write(split(inputs, axis)))
        # Of the first inputs, and of those where streams have been added:
        # what is dropped on the way back leaves no trace in what is before.
        samples, width = {}, 0
        for i, (block, p, s) in enumerate(zip(blocks, params_of, state_of)):
            if check and len(streams) > width:
                samples[i], width = check.keep(streams), len(streams)
            streams, added, changed, kept = backend.segment(
                block.forward,
                shared,
                [param_values[i] for i in p],
                [state_values[i] for i in s],
                streams,
            )
            for k, value in changed.items():
                state_values[s[k]] = updates[s[k]] = value
            losses.append(added)
            keeps.append(kept)
        outputs = join(final.read(final.unpack(streams)), axis)
        last = () if inputs_kept else streams if exact else outputs
        seen = (samples, is_finite(streams)) if check else ()
        residuals = param_values, last, shared, keeps, seen
        return (outputs, losses, updates), residuals

    def backward(residuals, cotangents):
        param_values, last, shared, keeps, seen = residuals
        d_outputs, d_losses, _ = cotangents
        streams = last if inputs_kept or exact else split(last, axis)
        d_streams = split(d_outputs, axis)
        d_params = [None] * len(param_values)
        d_shared = nested.map_structure(lambda _: None, shared)
        done, failed = [], []
        for i, (block, p, kept, d_added) in reversed(
            list(enumerate(zip(blocks, params_of, keeps, d_losses)))
        ):
            streams, d_streams, done, d_seen = backend.segment(
                block.backward,
                shared,
                [param_values[i] for i in p],
                kept,
                streams,
                d_added,
                d_streams,
                after=done,
            )
            d_shared = nested.map_structure(add, d_shared, d_seen)
            for k, d in zip(p, done):
                d_params[k] = add(d_params[k], d)
            if check and i in seen[0]:
                failed.append(check.failed(seen[0][i], streams))
        if check:
            d_params = check.report(failed, seen[1], d_params)
        return d_params, None, join(d_streams, axis), d_shared

    run = backend.custom_vjp(forward, backward)
    outputs, losses, updates = run(
        values(params), values(state), inputs, shared
    )
    for i, value in updates.items():
        state[i].assign(ops.stop_gradient(value))
    return outputs, [
        loss for added in losses for call in added for loss in call
    ]


def _unique(variables):
    return list({id(v): v for v in variables}.values())


def _positions(variables, groups):
    position = {id(v): i for i, v in enumerate(variables)}
    return [[position[id(v)] for v in group] for group in groups]
