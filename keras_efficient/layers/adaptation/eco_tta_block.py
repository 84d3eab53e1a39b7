import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers


@keras.saving.register_keras_serializable(package="keras_efficient")
class EcoTTABlock(keras.layers.Layer):
    """Adapt a frozen part of a network to test data by a small one beside it.

    Weights of the part are not trained, so that most of its activations need
    not be kept; the layer does not say what to minimize, which is the entropy
    of the predictions in the paper.

    ```
    y = norm(part(x)) + relu(norm(convolution(x)))
    loss + regularization mean |y - part(x)|          (part(x) held constant)
    ```

    `part` is called in inference mode. The second norm starts with a scale of
    0, so that the block begins as `norm(part(x))`; train the blocks on the
    training data for a while before they adapt. Gradients flow through `part`
    to the blocks before it: give `keras_efficient.layers.Recompute(part)` to
    keep its input alone.

    Args:
        part: A `keras.layers.Layer` from pictures to pictures, some blocks of
            a trained network. It becomes untrained.
        kernel_size: Integer, of the convolution. Defaults to `3`.
        regularization: Float. Defaults to `0.5`.
        momentum: Float, of both norms. Defaults to `0.9`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, height, width, channels)`.
        training: Python bool.

    Returns:
        Tensor of the shape that `part` returns.

    Raises:
        TypeError: `part` is not a layer.
        ValueError: `part` does not divide height and width by whole numbers.

    Example:

    ```python
    part = keras.layers.Conv2D(8, 3, padding="same", activation="relu")
    block = keras_efficient.layers.EcoTTABlock(part)
    y = block(keras.random.normal((2, 8, 8, 4)), training=True)
    ```

    Deviation: the paper's regularizer compares with the output of the whole
    frozen network, which takes a second forward pass; here it is that of the
    part, at the same input.

    Reference:
        - [Song et al., 2023](https://arxiv.org/abs/2303.01904)
    """

    def __init__(
        self, part, kernel_size=3, regularization=0.5, momentum=0.9, **kwargs
    ):
        super().__init__(**kwargs)
        if not isinstance(part, keras.layers.Layer):
            raise TypeError(
                "`part` must be a `keras.layers.Layer`. Received: "
                f"{part} (of type {type(part)})"
            )
        check_integers(1, kernel_size=kernel_size)
        check_numbers("[0, inf)", regularization=regularization)
        check_numbers("[0, 1]", momentum=momentum)
        part.trainable = False
        self.part = part
        self.kernel_size = kernel_size
        self.regularization = regularization
        self.momentum = momentum

    def build(self, input_shape):
        if not self.part.built:
            self.part.build(input_shape)
        output_shape = self.compute_output_shape(input_shape)
        sizes = list(zip(input_shape[1:3], output_shape[1:3]))
        if any(None in pair or pair[0] % pair[1] for pair in sizes):
            raise ValueError(
                "`part` must divide height and width, which must be known, by "
                f"whole numbers. Received: input_shape={input_shape}, "
                f"output_shape={output_shape}"
            )
        shared = {"dtype": self.dtype_policy}
        self.norm = keras.layers.BatchNormalization(
            momentum=self.momentum, name="norm", **shared
        )
        self.conv = keras.layers.Conv2D(
            output_shape[-1],
            self.kernel_size,
            strides=tuple(a // b for a, b in sizes),
            padding="same",
            use_bias=False,
            data_format="channels_last",
            name="conv",
            **shared,
        )
        self.conv_norm = keras.layers.BatchNormalization(
            momentum=self.momentum,
            gamma_initializer="zeros",
            name="conv_norm",
            **shared,
        )
        self.conv.build(input_shape)
        self.norm.build(output_shape)
        self.conv_norm.build(output_shape)

    def call(self, inputs, training=None):
        source = self.part(inputs, training=False)
        change = self.conv_norm(self.conv(inputs), training=training)
        y = self.norm(source, training=training) + ops.relu(change)
        if training:
            gap = ops.abs(y - ops.stop_gradient(source))
            gap = ops.mean(ops.cast(gap, "float32"))
            self.add_loss(self.regularization * gap)
        return y

    def compute_output_shape(self, input_shape):
        x = keras.KerasTensor(input_shape, self.compute_dtype)
        return self.part.compute_output_spec(x).shape

    def get_config(self):
        return {
            **super().get_config(),
            "part": keras.saving.serialize_keras_object(self.part),
            "kernel_size": self.kernel_size,
            "regularization": self.regularization,
            "momentum": self.momentum,
        }

    @classmethod
    def from_config(cls, config):
        part = keras.saving.deserialize_keras_object(config["part"])
        return cls(**{**config, "part": part})
