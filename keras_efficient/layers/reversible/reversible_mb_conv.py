import keras

from keras_efficient.layers.convolutional.mb_conv import MBConv
from keras_efficient.layers.reversible.additive_coupling import AdditiveCoupling
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleMBConv(AdditiveCoupling):
    """Couple the halves of the channels by two mobile inverted bottlenecks.

    ```
    y1 = x1 + f(x2)        x2 = y2 - g(y1)
    y2 = x2 + g(y1)        x1 = y1 - f(x2)
    ```

    with `f` and `g` of class `keras_efficient.layers.MBConv`. In a
    `keras_efficient.layers.ReversibleSequence`, bytes kept do not grow with
    the number of blocks, nor with what lies inside of them: the wide tensors
    of a bottleneck live for one block at a time.

    Args:
        filters: Integer, channels of the input and the output, at least 2.
        kernel_size: Integer, of the depthwise convolutions. Defaults to `3`.
        expansion: Integer, channels inside as a multiple of those of a half.
            Defaults to `2`.
        se_ratio: Float, see `keras_efficient.layers.MBConv`. Defaults to `0`.
        drop_rate: Float, see there. Defaults to `0`.
        normalization: `"batch"` or `"instance"`. Defaults to `"batch"`.
        activation: Defaults to `"hard_silu"`.
        rank: Integer, `2` for images, `3` for volumes. Defaults to `2`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `None`, `keras.config.image_data_format()`.
        first: Integer, `1` or `2`: the half to which is added first. Defaults
            to `1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`; `dtype`
            is that of the bottlenecks.

    Call arguments:
        inputs: Tensor of `filters` channels, or a list of its two halves.
        training: Python bool.

    Returns:
        One tensor or a list of two, as the inputs, of the same shapes.

    Example:

    ```python
    blocks = [
        keras_efficient.layers.ReversibleMBConv(16, rank=3) for _ in range(3)
    ]
    run = keras_efficient.layers.ReversibleSequence(blocks)
    y = run(keras.random.normal((1, 8, 8, 8, 16)))
    ```

    Reference:
        - [Pendse et al., 2021](https://arxiv.org/abs/2104.09648)
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """

    def __init__(
        self,
        filters,
        kernel_size=3,
        expansion=2,
        se_ratio=0.0,
        drop_rate=0.0,
        normalization="batch",
        activation="hard_silu",
        rank=2,
        data_format=None,
        first=1,
        **kwargs,
    ):
        if filters < 2:
            raise ValueError(
                "`filters` must be at least 2, one channel for each half. "
                f"Received: filters={filters}"
            )

        def mb_conv(filters):
            return MBConv(
                filters,
                kernel_size,
                expansion=expansion,
                se_ratio=se_ratio,
                drop_rate=drop_rate,
                normalization=normalization,
                activation=activation,
                rank=rank,
                data_format=data_format,
                dtype=kwargs.get("dtype"),
            )

        halves = filters // 2, filters - filters // 2
        f, g = map(mb_conv, halves if first == 1 else halves[::-1])
        super().__init__(f, g, f.channel_axis, first, **kwargs)
        self.filters = filters

    def get_config(self):
        inner = self.f.get_config()
        for name in ("name", "trainable", "strides", "padding"):
            del inner[name]
        config = ReversibleLayer.get_config(self)
        del config["axis"]
        return {
            **config,
            **inner,
            "filters": self.filters,
            "first": self.first,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)
