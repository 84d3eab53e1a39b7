import keras
from keras import ops

from keras_efficient.autodiff.capture import accepted
from keras_efficient.layers.reversible.additive_coupling import AdditiveCoupling
from keras_efficient.layers.reversible.momentum_coupling import MomentumCoupling
from keras_efficient.layers.reversible.reversible_sequence import (
    ReversibleSequence,
)

COUPLINGS = ("momentum", "additive")


def sequence_from_modules(
    modules, coupling="momentum", momentum=None, residual=True, reversible=True
):
    """Make one reversible layer of residual layers that are there already.

    The layers stay the same objects, with their weights; what a training step
    keeps does not grow with their number. With `f_i(x) = layer_i(x) - x`,

    ```
    "momentum":  v <- m v + (1 - m) f_i(x);  x <- x + v
                 returned is x + m / (1 - m) v, from v = 0 on
    "additive":  (x1, x2) <- (x2, x1 + f_i(x2))
                 returned is (x1 + x2) / 2, from x1 = x2 = x on
    ```

    With momentum the sum of all that is added is that of the residual
    network, later; the smaller m is, the sooner, and the more do rounding
    errors grow in the reconstruction, by `1 / m` a layer. The additive form
    has no such growth, and is another network: train it from the start.

    Args:
        modules: List of Keras layers from a tensor to one of the same shape,
            or on PyTorch of `torch.nn.Module`, or of both. (Of what returns a
            list or a tuple, the first entry is taken.)
        coupling: `"momentum"` or `"additive"`. Defaults to `"momentum"`.
        momentum: Float between 0 and 1. Defaults to `None`, so that errors
            grow by 1000 over all layers.
        residual: Boolean. Whether the layers add their input themselves, as
            blocks of a ResNet or a transformer do; `False` for layers that
            are f themselves. Defaults to `True`.
        reversible: Boolean, see `keras_efficient.layers.ReversibleSequence`.

    Returns:
        A Keras layer from a tensor to a tensor, which takes the further call
        arguments of the layers. Its `run` is the `ReversibleSequence`.

    Raises:
        TypeError: an entry of `modules` is neither a layer nor a module.
        ValueError: `coupling` is neither, or `modules` is empty.

    Example:

    ```python
    def block():
        x = keras.Input((16,))
        y = keras.layers.Dense(16, "tanh")(x)
        return keras.Model(x, keras.layers.Add()([x, y]))

    stack = keras_efficient.models.sequence_from_modules(
        [block() for _ in range(8)]
    )
    y = stack(keras.random.normal((2, 16)))
    ```

    Reference:
        - [Sander et al., 2021](https://arxiv.org/abs/2102.07870)
    """
    modules = [_as_layer(module) for module in modules]
    if coupling not in COUPLINGS or not modules:
        raise ValueError(
            f"`coupling` must be one of {COUPLINGS}, and `modules` not empty. "
            f"Received: coupling={coupling!r} and {len(modules)} modules"
        )
    if momentum is None:
        momentum = 1000 ** (-1 / len(modules))
    blocks = []
    for module in modules:
        f = Branch(module) if residual else module
        blocks.append(
            MomentumCoupling(f, momentum)
            if coupling == "momentum"
            else AdditiveCoupling(f)
        )
    return StackOfModules(ReversibleSequence(blocks, reversible))


def _as_layer(module):
    if isinstance(module, keras.layers.Layer):
        return module
    if keras.config.backend() == "torch" and hasattr(module, "state_dict"):
        return keras.layers.TorchModuleWrapper(module)
    raise TypeError(
        "`modules` must be Keras layers or, on the PyTorch backend, "
        f"`torch.nn.Module`. Received: {module} (of type {type(module)})"
    )


@keras.saving.register_keras_serializable(package="keras_efficient")
class Branch(keras.layers.Layer):
    """What a residual layer adds to its input."""

    def __init__(self, layer, **kwargs):
        super().__init__(dtype=layer.dtype_policy, **kwargs)
        self.layer = layer
        self.supports_masking = True

    def takes(self, name):
        return bool(accepted(self.layer, {name: None}))

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, x, training=None, **arguments):
        if self.takes("training"):
            arguments["training"] = training
        y = self.layer(x, **arguments)
        y = y[0] if isinstance(y, (list, tuple)) else y
        return y - ops.cast(x, y.dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(layer, name=config["name"])


@keras.saving.register_keras_serializable(package="keras_efficient")
class StackOfModules(keras.layers.Layer):
    """A run from one tensor to one tensor, see `sequence_from_modules`."""

    def __init__(self, run, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.run = run
        self.supports_masking = True

    def build(self, input_shape):
        if not self.run.built:
            self.run.build([tuple(input_shape)] * 2)

    def takes(self, name):
        return self.run.takes(name)

    def call(self, x, training=None, **arguments):
        first = self.run.blocks[0]
        if isinstance(first, MomentumCoupling):
            streams = [x, ops.zeros_like(x)]
            return first.limit(
                self.run(streams, training=training, **arguments)
            )
        x1, x2 = self.run([x, x], training=training, **arguments)
        return (x1 + x2) / 2

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        run = keras.saving.serialize_keras_object(self.run)
        return {**super().get_config(), "run": run}

    @classmethod
    def from_config(cls, config):
        run = keras.saving.deserialize_keras_object(config["run"])
        return cls(**{**config, "run": run})
