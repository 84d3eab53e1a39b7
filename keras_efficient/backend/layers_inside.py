"""The layers of a model, wherever they are kept."""

import keras


def layers_inside(layer):
    """List a layer and all layers inside, each once."""
    found, new = {}, [layer]
    while new:
        value = new.pop()
        if isinstance(value, keras.layers.Layer) and id(value) not in found:
            found[id(value)] = value
            new += vars(value).values()
        elif isinstance(value, dict):
            new += value.values()
        elif isinstance(value, (list, tuple)):
            new += value
    return list(found.values())
