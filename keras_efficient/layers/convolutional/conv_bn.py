import keras

from keras_efficient.autodiff.capture import accepted
from keras_efficient.layers.convolutional.tuned_conv import check_pair
from keras_efficient.layers.convolutional.tuned_conv import tuned_conv

MODES = ("train", "eval", "tune")


@keras.saving.register_keras_serializable(package="keras_efficient")
class ConvBN(keras.layers.Layer):
    """A convolution and its batch normalization, in three ways to compute.

    ```
    "train"   y = bn(conv(x)), with the statistics of the batch in training
    "eval"    y = bn(conv(x)), with the moving statistics always
    "tune"    the same as one convolution:
              c = gamma / sqrt(moving_variance + epsilon)
              y = conv(x; w c, beta + c (b - moving_mean))
    ```

    For fine-tuning, with statistics of few images that are of no use, and the
    moving ones that are there. `"tune"` gives the outputs and gradients of
    `"eval"`, those of gamma and beta, too, but keeps one map less for the
    backward pass: the output of the convolution is the output. (Where gamma
    is frozen, `"eval"` keeps none either.) And as no statistics are written,
    the layer is fit for recomputation and reversible blocks.

    The merged kernel is computed in float32.

    Args:
        conv: A convolution without activation: `Conv1D` to `Conv3D`, or
            depthwise.
        batch_normalization: `keras.layers.BatchNormalization` over the
            channels.
        mode: `"train"`, `"eval"` or `"tune"`. Defaults to `"train"`. The
            attribute may be changed; then compile the model again.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor, the input of `conv`.
        training: Boolean, for `"train"`.

    Returns:
        Tensor, what `batch_normalization` returns.

    Raises:
        ValueError: `mode` is none of these, or the two do not fit.

    Example:

    ```python
    layer = keras_efficient.layers.ConvBN(
        keras.layers.Conv2D(8, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        mode="tune",
    )
    y = layer(keras.ops.ones((1, 5, 5, 2)))
    ```

    Reference:
        - [You et al., 2023](https://arxiv.org/abs/2305.11624)
    """

    def __init__(self, conv, batch_normalization, mode="train", **kwargs):
        if mode not in MODES:
            raise ValueError(
                f"`mode` must be one of {MODES}. Received: mode={mode}"
            )
        reason = check_pair(conv, batch_normalization)
        if reason:
            raise ValueError(
                "`conv` and `batch_normalization` must make one convolution: "
                f"{reason}. Received: conv={conv}, "
                f"batch_normalization={batch_normalization}"
            )
        super().__init__(autocast=False, **kwargs)
        self.conv = conv
        self.batch_normalization = batch_normalization
        self.mode = mode

    def build(self, input_shape):
        if not self.conv.built:
            self.conv.build(input_shape)
        if not self.batch_normalization.built:
            shape = self.conv.compute_output_shape(input_shape)
            self.batch_normalization.build(shape)

    def call(self, inputs, training=None):
        if self.mode == "tune":
            return tuned_conv(self.conv, self.batch_normalization, inputs)
        training = training if self.mode == "train" else False
        y = self.conv(inputs, **accepted(self.conv, {"training": training}))
        return self.batch_normalization(y, training=training)

    def compute_output_shape(self, input_shape):
        return self.conv.compute_output_shape(input_shape)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "conv": serialize(self.conv),
            "batch_normalization": serialize(self.batch_normalization),
            "mode": self.mode,
        }

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        names = ("conv", "batch_normalization")
        return cls(**{**config, **{x: deserialize(config[x]) for x in names}})
