import keras
from keras import layers

from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class ResidualTransition(ReversibleLayer):
    """Change size and width between the stages of a reversible ResNet.

    ```
    y1 = s1(x1) + f(x2)
    y2 = s2(x2) + g(y1)
    ```

    with shortcuts s1 and s2 that cannot be undone. As a block of a run it
    keeps its inputs; all that is inside is computed again.

    Args:
        f: Layer from x2 to y1.
        g: Layer from y1 to y2.
        shortcuts: List of the layers s1 and s2.
        **kwargs: Arguments of `ReversibleLayer`.
    """

    keeps_inputs = True
    bijective = False

    def __init__(self, f, g, shortcuts, **kwargs):
        super().__init__(**kwargs)
        self.f = f
        self.g = g
        self.shortcuts = list(shortcuts)

    def couple(self, streams, evaluate):
        x1, x2 = streams
        s1, s2 = self.shortcuts
        y1 = evaluate(s1, x1) + evaluate(self.f, x2)
        return y1, evaluate(s2, x2) + evaluate(self.g, y1)

    def uncouple(self, streams, evaluate):
        raise ValueError(
            f"Layer '{self.name}' has no inverse: it makes feature maps "
            "smaller. Invert the runs between such layers one by one."
        )

    def pull_back(self, inputs, cotangents, vjp):
        """Pull the cotangents back to the inputs, which are given.

        ```
        d1 = dy1 + J_g(y1)^T dy2          dx1 = J_s1^T d1
        dx2 = J_s2^T dy2 + J_f^T d1
        ```
        """
        (x1, x2), (d1, d2) = inputs, cotangents
        s1, s2 = self.shortcuts
        _, pull_s2 = vjp(s2, x2)
        y1, pull_s1 = vjp(s1, x1)
        value, pull_f = vjp(self.f, x2)
        _, pull_g = vjp(self.g, y1 + value)
        d1 = d1 + pull_g(d2)
        return (x1, x2), (pull_s1(d1), pull_s2(d2) + pull_f(d1))

    def compute_output_shape(self, inputs_shape, context_shape=None):
        return [
            tuple(shortcut.compute_output_shape(shape))
            for shortcut, shape in zip(self.shortcuts, inputs_shape)
        ]

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "f": serialize(self.f),
            "g": serialize(self.g),
            "shortcuts": list(map(serialize, self.shortcuts)),
        }

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        parts = {name: deserialize(config[name]) for name in ("f", "g")}
        parts["shortcuts"] = list(map(deserialize, config["shortcuts"]))
        return cls(**{**config, **parts})


@keras.saving.register_keras_serializable(package="keras_efficient")
class PooledShortcut(layers.Layer):
    """Average windows, and add channels of zeros on both sides.

    Args:
        filters: Integer, channels of the output.
        strides: Integer, the size of windows.
        axis: Integer, of the channels.
    """

    def __init__(self, filters, strides, axis=-1, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.axis = axis

    def call(self, inputs):
        x = inputs
        if self.strides > 1:
            form = "channels_last" if self.axis == -1 else "channels_first"
            x = keras.ops.average_pool(
                x, self.strides, self.strides, "same", form
            )
        more = self.filters - x.shape[self.axis]
        zeros = [(0, 0)] * len(x.shape)
        zeros[self.axis] = (more // 2, more - more // 2)
        return keras.ops.pad(x, zeros)

    def compute_output_shape(self, input_shape):
        shape = [n and -(-n // self.strides) for n in input_shape]
        shape[0] = input_shape[0]
        shape[self.axis] = self.filters
        return tuple(shape)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
            "axis": self.axis,
        }
