"""A call of a reversible layer, or of its inverse."""

from keras import ops

from keras_efficient.autodiff.plain_run import plain_run
from keras_efficient.autodiff.reconstruction_check import ReconstructionCheck
from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.layers.invertible.examples import zeros_per_example
from keras_efficient.layers.reversible.log_det import WithLogDet


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
    kind = type(inputs)
    streams, axis = standardize_streams(layer, inputs)
    if not return_log_det:
        outputs = _run(layer, run, blocks, streams, shared, training, axis)
        return list(outputs) if kind is list else outputs
    streams = split(streams, axis)
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


def _run(layer, run, blocks, streams, shared, training, axis):
    arguments = blocks, streams, shared, bool(training), axis, layer.exact
    if run is None or not layer.reversible:
        return plain_run(*arguments)
    check = layer.check and ReconstructionCheck(layer.name, layer.check)
    return run(*arguments, check)
