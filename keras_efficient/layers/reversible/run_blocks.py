"""A call of a reversible layer, or of its inverse."""

from keras import ops

from keras_efficient.autodiff.capture import BLOCK_ARGUMENTS
from keras_efficient.autodiff.plain_run import plain_run
from keras_efficient.autodiff.reconstruction_check import ReconstructionCheck
from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.layers.invertible.examples import zeros_per_example
from keras_efficient.layers.reversible.log_det import WithLogDet
from keras_efficient.layers.reversible.sub_layers import first_size
from keras_efficient.layers.reversible.sub_layers import is_halved


def run_blocks(
    layer, run, blocks, inputs, shared, training, return_log_det=False
):
    """Run `blocks` over the inputs of `layer`.

    Args:
        layer: A reversible layer.
        run: `reversible_run` or what takes its place; `None`, and any run of
            a plain twin, is `plain_run`.
        blocks: List of blocks.
        inputs: One tensor, or a list or tuple of streams.
        shared: Dictionary of further arguments for sub-layers.
        training: Python bool.
        return_log_det: Python bool.

    Returns:
        The outputs, one tensor or a list or tuple as the inputs; with
        `return_log_det` a tuple of them and of `log |det J|`.
    """
    if BLOCK_ARGUMENTS in shared:
        own = layer.spread(shared[BLOCK_ARGUMENTS])
        own = own[::-1] if blocks[0].undoes else own
        shared = {**shared, BLOCK_ARGUMENTS: own}
    kind = type(inputs)
    streams, axis = standardize_streams(layer, inputs)
    halved = axis is None or is_halved(layer, streams.shape)
    if halved and not return_log_det:
        outputs = _run(layer, run, blocks, streams, shared, training, axis)
        return list(outputs) if kind is list else outputs
    if not halved:
        # The engine keeps one tensor for both, where it can halve it again.
        size = first_size(layer, streams.shape, at_end=blocks[0].undoes)
        streams = split(streams, axis, size)
    else:
        streams = split(streams, axis)
    if not return_log_det:
        outputs = _run(layer, run, blocks, streams, shared, training, None)
        return join(outputs, axis)
    total = zeros_per_example(streams[0])
    if layer.exact:  # its blocks only add
        outputs = _run(layer, run, blocks, streams, shared, training, None)
    else:
        blocks = [WithLogDet(block) for block in blocks]
        streams = (*streams, total)
        *outputs, total = _run(
            layer, run, blocks, streams, shared, training, None
        )
    outputs = join(tuple(outputs), axis)
    return list(outputs) if kind is list else outputs, total


def standardize_streams(layer, inputs):
    """Return the inputs as tensors, and where to split a single one."""
    dtype = layer.compute_dtype
    if isinstance(inputs, (list, tuple)):
        return tuple(ops.cast(x, dtype) for x in inputs), None
    return ops.cast(inputs, dtype), layer.axis


def split_streams(layer, inputs):
    """Return the streams of one tensor, or those of a list."""
    streams, axis = standardize_streams(layer, inputs)
    if axis is None:
        return streams
    return split(streams, axis, first_size(layer, streams.shape))


def _run(layer, run, blocks, streams, shared, training, axis):
    arguments = blocks, streams, shared, bool(training), axis, layer.exact
    if run is None or not layer.reversible:
        return plain_run(*arguments)
    check = layer.check and ReconstructionCheck(layer.name, layer.check)
    store = {} if layer.store is None else {"store": layer.store}
    return run(*arguments, check, **store)
