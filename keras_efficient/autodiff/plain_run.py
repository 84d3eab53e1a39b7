"""A run of blocks that stores its activations, the plain twin of the others."""

from keras_efficient.autodiff.capture import call_arguments
from keras_efficient.autodiff.fixed_point import round_to_fixed
from keras_efficient.autodiff.fixed_point import to_fixed
from keras_efficient.autodiff.fixed_point import to_float
from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.backend import nested


def plain_run(blocks, inputs, shared, training, axis=None, exact=False):
    """Do what `reversible_run` does, with the derivative of the backend.

    Forward, streams are floats, rounded to what integers would be where
    `exact`: the rounding has a gradient. Blocks that undo others run on the
    integers themselves.
    """
    streams = split(inputs, axis)
    on_integers = exact and blocks[0].undoes
    if on_integers:
        streams = nested.map_structure(to_fixed, streams)
    elif exact:
        streams = nested.map_structure(round_to_fixed, streams)
    for block in blocks:
        evaluate = evaluator(block, shared, training, exact, on_integers)
        streams = block.couple(streams, evaluate)
    if on_integers:
        dtype = blocks[0].compute_dtype
        streams = nested.map_structure(lambda i: to_float(i, dtype), streams)
    return join(streams, axis)


def evaluator(block, shared, training, exact=False, on_integers=False):
    """Return `evaluate` for a run that stores its activations."""

    def evaluate(layer, x):
        known = call_arguments(layer, x, shared)
        y = block.standardize(layer(x, **{**known, "training": training}))
        return nested.map_structure(round_to_fixed, y) if exact else y

    def evaluate_on_integers(layer, i):
        dtype = block.compute_dtype
        x = nested.map_structure(lambda i: to_float(i, dtype), i)
        return nested.map_structure(to_fixed, evaluate(layer, x))

    return evaluate_on_integers if on_integers else evaluate
