import keras

from keras_efficient import backend
from keras_efficient.backend.replacement import Replacement
from keras_efficient.backend.replacement import find
from keras_efficient.conversion.arguments import check_model
from keras_efficient.conversion.layer_tree import all_layers

_METHODS = ("save_own_variables", "load_own_variables")


def save_in_16_bits(model, save=True):
    """Make a model write and read its bfloat16 weights as 16 bits, in place.

    Keras on PyTorch writes and reads a bfloat16 weight by way of float32 and
    holds 8 bytes an entry besides for a time: 2.4 GB for an embedding of 302
    million entries. With this it holds 2. The files are those of Keras, byte
    by byte: each can be read with and without.

    It serves `model.save_weights`, `load_weights`, `model.save` and the
    callbacks that call them. On JAX and TensorFlow nothing is changed: Keras
    keeps the 16 bits there.

    It is a property of the object, not of what is saved. Layers that are added
    later, and those inside of reversible layers, are written as before.

    Args:
        model: A `keras.Model`.
        save: Boolean. `False` undoes what was done before. Defaults to `True`.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a `keras.Model`.

    Example:

    ```python
    keras.config.set_dtype_policy("bfloat16")
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)])
    keras_efficient.save_in_16_bits(model)
    model.save_weights("model.weights.h5")
    ```
    """
    check_model(model)
    for layer in all_layers(model) if backend.files else ():
        for name in _METHODS:
            before = find(layer, name, _SixteenBits)
            if before:
                before.remove()
            if save:
                Replacement(layer, name, _SixteenBits().run)
    return model


class _SixteenBits:
    def run(self, method, store):
        return method(_Store(store))


class _Store:
    """What a layer writes to and reads from, with arrays of 16 bits."""

    def __init__(self, store):
        self.store = store

    def __getattr__(self, name):
        return getattr(self.store, name)

    def __len__(self):
        return len(self.store)

    def __contains__(self, key):
        return key in self.store

    def __getitem__(self, key):
        return backend.files.as_tensor(self.store[key])

    def __setitem__(self, key, value):
        if isinstance(value, keras.Variable):
            value = value.value
        self.store[key] = backend.files.as_array(value)
