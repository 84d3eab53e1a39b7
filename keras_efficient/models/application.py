"""What the functions that return models have in common."""

import keras
from keras import layers

_POOLING = {"avg": "GlobalAveragePooling", "max": "GlobalMaxPooling"}


def image_input(input_shape, channels, multiple, rank=2):
    """Return an input of images or volumes after checking its shape.

    Args:
        input_shape: Tuple without the batch axis, or `None` for unknown sizes
            and `channels`.
        channels: Integer.
        multiple: Integer that has to divide the known sizes.
        rank: Integer, the number of spatial axes.
    """
    first = keras.config.image_data_format() == "channels_first"
    if input_shape is None:
        sizes = (None,) * rank
        input_shape = (channels, *sizes) if first else (*sizes, channels)
    sizes = input_shape[1:] if first else input_shape[:-1]
    if len(input_shape) != rank + 1 or any(n and n % multiple for n in sizes):
        raise ValueError(
            f"`input_shape` must be {rank} sizes that {multiple} divides, and "
            "the number of channels, in the order "
            f"'{keras.config.image_data_format()}'. Received: input_shape="
            f"{input_shape}. Resize, crop or pad the inputs."
        )
    return keras.Input(input_shape)


def channel_axis():
    last = keras.config.image_data_format() == "channels_last"
    return -1 if last else 1


def check_pooling(pooling):
    if pooling not in _POOLING:
        raise ValueError(
            "`pooling` must be None, 'avg' or 'max'. Received: "
            f"pooling={pooling!r}"
        )


def pool(x, pooling, rank=2, **kwargs):
    """Apply `pooling` ("avg" or "max") over all of space."""
    check_pooling(pooling)
    return getattr(layers, f"{_POOLING[pooling]}{rank}D")(**kwargs)(x)


def finish(inputs, outputs, weights, name):
    """Return the model, with `weights` loaded from a file if given."""
    model = keras.Model(inputs, outputs, name=name)
    if weights is not None:
        model.load_weights(weights)
    return model
