"""A run of blocks that stores its activations, the plain twin of the others."""

from keras_efficient.autodiff.capture import arguments_of_block
from keras_efficient.autodiff.capture import call_arguments
from keras_efficient.autodiff.fixed_point import FixedPoint
from keras_efficient.autodiff.fixed_point import FixedPointFloats
from keras_efficient.autodiff.fixed_point import to_floats
from keras_efficient.autodiff.fixed_point import to_kind
from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split


def plain_run(blocks, inputs, shared, training, axis=None, exact=False):
    """Do what `reversible_run` does, with the derivative of the backend.

    Forward, streams are floats, rounded to what integers would be where
    `exact`: the rounding has a gradient. Blocks that undo others run on the
    integers themselves.
    """
    kind = None
    if exact:
        kind = FixedPoint if blocks[0].undoes else FixedPointFloats
    streams = to_kind(split(inputs, axis), kind)
    for i, block in enumerate(blocks):
        own = arguments_of_block(shared, i)
        evaluate = evaluator(block, own, training, kind)
        streams = block.couple(streams, evaluate)
    return join(to_floats(streams, kind, blocks[0].compute_dtype), axis)


def evaluator(block, shared, training, kind=None):
    """Return `evaluate` for a run that stores its activations."""

    def evaluate(layer, x):
        x = to_floats(x, kind, block.compute_dtype)
        known = call_arguments(layer, x, shared)
        y = block.standardize(layer(x, **{**known, "training": training}))
        return to_kind(y, kind)

    return evaluate
