import keras

from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class AdditiveCoupling(ReversibleLayer):
    """Couple two streams so that the inputs follow from the outputs.

    Reversible, here and in the whole library, means: activations are
    recomputed from the outputs during the backward pass instead of being
    kept for it. (`keras.layers.ReversibleEmbedding` is something else.) The
    layer computes

    ```
    y1 = x1 + f(x2)        x2 = y2 - g(y1)
    y2 = x2 + g(y1)        x1 = y1 - f(x2)
    ```

    on the left, and its inverse on the right. `f` and `g` are arbitrary
    Keras layers that keep the shape of a stream; they need not be invertible
    themselves. Dropout inside them drops the same units in the recomputation
    and BatchNormalization updates its statistics once a step. Without `g`
    the layer is the half step with a swap, `y1 = x2, y2 = x1 + f(x2)`.

    The cost is one more evaluation of `f` and `g` a training step, a third of
    the time of a plain step. A single coupling keeps its output; many of
    them in a `keras_efficient.layers.ReversibleSequence` keep no more than
    one does.

    Streams are float32 (float64 under a float64 policy) also in mixed
    precision, because rounding errors of the streams add up in the
    reconstruction; `f` and `g` compute in their own policies. Masks are
    passed on to the next layer, but not to `f` and `g`.

    Args:
        f: A `keras.layers.Layer`, applied to the second stream.
        g: A `keras.layers.Layer`, applied to the first stream. Defaults to
            `None`, the half step with a swap.
        axis: Integer. The axis along which a single input tensor is split
            into two streams; its size must be even. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: One tensor, or a pair of tensors of the same shape.
        training: Python bool, passed on to `f` and `g`.

    Returns:
        One tensor or a pair, as the inputs, of the same shape.

    Raises:
        TypeError: `f` or `g` is not a Keras layer.
        ValueError: the input cannot be split, or `f` or `g` changes the
            shape of its stream.

    Example:

    ```python
    coupling = keras_efficient.layers.AdditiveCoupling(
        keras.layers.Dense(8, activation="gelu"),
        keras.layers.Dense(8, activation="gelu"),
    )
    x = keras.random.normal((2, 16))
    y = coupling(x)
    x_again = coupling.inverse(y)
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """

    def __init__(self, f, g=None, axis=-1, **kwargs):
        super().__init__(**kwargs)
        for name, layer in (("f", f), ("g", g)):
            if not isinstance(layer, keras.layers.Layer):
                if name == "g" and g is None:
                    continue
                raise TypeError(
                    f"`{name}` must be a `keras.layers.Layer` instance; wrap "
                    "several layers in `keras.Sequential`, a function in "
                    f"`keras.layers.Lambda`. Received: {name}={layer} (of "
                    f"type {type(layer)})"
                )
        self.f = f
        self.g = g
        self.axis = axis

    def couplings(self):
        return [self]

    def build(self, input_shape):
        shape = self.stream_shape(input_shape)
        for name, layer in (("f", self.f), ("g", self.g)):
            if layer is None:
                continue
            # A symbolic call also builds layers that have no `build`.
            stream = keras.KerasTensor(shape, self.stream_dtype)
            output_shape = getattr(layer(stream), "shape", None)
            if output_shape != shape:
                raise ValueError(
                    f"`{name}` must return one tensor of the shape of its "
                    f"input stream. Layer '{layer.name}' maps {shape} to "
                    f"{output_shape}. Give its last layer the width of a "
                    "stream (half the channels of a single input)."
                )

    # Not `forward`: on PyTorch a layer is a module, and that is its call.
    def couple(self, streams, evaluate):
        x1, x2 = streams
        if self.g is None:
            return x2, x1 + evaluate(self.f, x2)
        y1 = x1 + evaluate(self.f, x2)
        y2 = x2 + evaluate(self.g, y1)
        return y1, y2

    def uncouple(self, streams, evaluate):
        y1, y2 = streams
        if self.g is None:
            return y2 - evaluate(self.f, y1), y1
        x2 = y2 - evaluate(self.g, y1)
        x1 = y1 - evaluate(self.f, x2)
        return x1, x2

    def pull_back(self, outputs, cotangents, vjp):
        """Reconstruct the inputs and pull the cotangents back to them.

        With J the Jacobian of a function at the point of its evaluation:

        ```
        d1 = dy1 + J_g(y1)^T dy2        dx1 = d1
                                        dx2 = dy2 + J_f(x2)^T d1
        half step:  dx1 = dy2,          dx2 = dy1 + J_f(x2)^T dy2
        ```
        """
        (y1, y2), (d1, d2) = outputs, cotangents
        if self.g is None:
            value, pullback = vjp(self.f, y1)
            return (y2 - value, y1), (d2, d1 + pullback(d2))
        value, pullback = vjp(self.g, y1)
        x2, d1 = y2 - value, d1 + pullback(d2)
        value, pullback = vjp(self.f, x2)
        x1, d2 = y1 - value, d2 + pullback(d1)
        return (x1, x2), (d1, d2)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        config = {
            "f": serialize(self.f),
            "g": serialize(self.g),
            "axis": self.axis,
        }
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        sub_layers = {name: deserialize(config[name]) for name in ("f", "g")}
        return cls(**{**config, **sub_layers})
