"""Put what stands for `call` into a model, and take it out again."""

from keras_efficient.conversion.layer_tree import all_layers
from keras_efficient.conversion.layer_tree import graph_of
from keras_efficient.conversion.segments import restore


def restore_all(model):
    """Take out all replacements of a model, and return them."""
    return [x for layer in all_layers(model) for x in restore(layer)]


def forget_programs(model):
    """Let `fit` and the like be compiled anew, for what a model now does."""
    model.train_function = None
    model.test_function = None
    model.predict_function = None


def install(model, chosen, store=None):
    """Put in what `choose_segments` has chosen.

    Args:
        model: A Keras model.
        chosen: List of what `choose_segments` returns.
        store: How inputs of segments are kept.

    Returns:
        The replacements that were in it before, and the segments: a list of
        lists, those that belong together in one.
    """
    before = restore_all(model)
    # A subclass may fail to pass `training` on, or not ask for it at all;
    # then the first Dropout tells all layers behind it that it is `False`.
    modes = (True,) if graph_of(model) else (True, False, None)
    segments = {}
    for kind, *arguments in chosen:
        replacement = kind(*arguments, modes, store)
        replacement.install()
        for segment in replacement.segments:
            key = getattr(segment, "layer", segment)
            segments.setdefault(id(key), []).append(segment)
    return before, list(segments.values())


def reinstall(model, before):
    """Put in what was there before."""
    restore_all(model)
    for replacement in before:
        replacement.install()
