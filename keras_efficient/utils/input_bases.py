import functools

import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import check_numbers
from keras_efficient.backend.replacement import Replacement
from keras_efficient.conversion.layer_tree import all_layers

LAYERS = (keras.layers.Dense, keras.layers.Conv2D)


def input_bases(model, x, energy=0.95, bases=None, batch_size=32):
    """Find the directions that the inputs of each layer lie in.

    It is what `keras_efficient.optimizers.GradientProjection` keeps a model
    from forgetting; it covers `Dense` and `Conv2D` layers and takes
    features^2 floats a layer, features of a convolution being those of a
    window.

    For the inputs X of a layer, one a row, S holds the fewest orthonormal
    columns with

    ```
    |X S|^2 >= energy |X|^2
    ```

    Biases have the basis of the constant 1, which keeps them as they are.

    Args:
        model: Built `keras.Model`, not compiled for this.
        x: Array of examples of the tasks that are to be kept.
        energy: Float in (0, 1]. Defaults to `0.95`.
        bases: What this returned for earlier tasks: the result spans these,
            too. Defaults to `None`.
        batch_size: Positive integer. Defaults to `32`.

    Returns:
        Dictionary from the paths of variables to arrays of shape
        `(features, directions)`.

    Raises:
        ValueError: `energy` is outside its range, the model has no such layer,
            or a convolution has groups.

    Example:

    ```python
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    x = np.random.normal(size=(64, 8)).astype("float32")
    bases = keras_efficient.utils.input_bases(model, x)
    ```

    Reference:
        - [Saha et al., 2021](https://arxiv.org/abs/2103.09762)
    """
    check_numbers("(0, 1]", energy=energy)
    layers = [layer for layer in all_layers(model) if type(layer) in LAYERS]
    if not layers:
        raise ValueError(
            "The model must have `Dense` or `Conv2D` layers. Received: none"
        )
    grams = _grams(model, layers, x, batch_size)
    found = {}
    for layer, gram in zip(layers, grams):
        path = layer.kernel.path
        old = (bases or {}).get(path, np.zeros((len(gram), 0)))
        found[path] = _basis(gram, energy, np.asarray(old, "float64"))
        if layer.use_bias:
            found[layer.bias.path] = np.ones((1, 1), "float32")
    return found


def _grams(model, layers, x, batch_size):
    """Return X^T X of the inputs X of each layer."""
    grams = [0.0] * len(layers)

    def record(i, layer, hidden, inputs, *args, **kwargs):
        rows = ops.convert_to_numpy(_rows(layer, inputs)).astype("float64")
        grams[i] = grams[i] + rows.T @ rows
        return hidden(inputs, *args, **kwargs)

    replacements = [
        Replacement(layer, "call", functools.partial(record, i, layer))
        for i, layer in enumerate(layers)
    ]
    try:
        size = len(keras.tree.flatten(x)[0])
        for start in range(0, size, batch_size):
            batch = keras.tree.map_structure(
                lambda a: ops.convert_to_tensor(a[start : start + batch_size]),
                x,
            )
            model(batch, training=False)
    finally:
        for replacement in replacements:
            replacement.remove()
    return grams


def _rows(layer, inputs):
    """Return what the kernel, as a matrix, is multiplied by."""
    if isinstance(layer, keras.layers.Dense):
        return ops.reshape(inputs, (-1, inputs.shape[-1]))
    if layer.groups > 1:
        raise ValueError(
            f"`input_bases` knows no convolutions with groups. Received: "
            f"{layer.name} with groups={layer.groups}"
        )
    patches = ops.image.extract_patches(
        inputs,
        layer.kernel_size,
        strides=layer.strides,
        dilation_rate=layer.dilation_rate,
        padding=layer.padding,
        data_format=layer.data_format,
    )
    if layer.data_format == "channels_first":
        patches = ops.moveaxis(patches, 1, -1)
    return ops.reshape(patches, (-1, patches.shape[-1]))


def _basis(gram, energy, old):
    """Add to `old` the directions that reach the energy."""
    total = np.trace(gram)
    kept = np.trace(old.T @ gram @ old)
    away = np.eye(len(gram)) - old @ old.T
    values, vectors = np.linalg.eigh(away @ gram @ away)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    # Rounding must not ask for directions in which there is nothing.
    needed = energy * total * (1 - 1e-9)
    reached = kept + np.concatenate([[0.0], np.cumsum(values)])
    count = int(np.argmax(reached >= needed)) if kept < needed else 0
    basis = np.linalg.qr(np.concatenate([old, vectors[:, :count]], 1))[0]
    return basis.astype("float32")
