import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.layers.core.base_reparametrized import kernel_of

BRANCHES = ("parallel", "sequential")


@keras.saving.register_keras_serializable(package="keras_efficient")
class Hydra(keras.layers.Layer):
    """Adapt a frozen layer by low-rank branches beside it and behind it.

    It adds the branch behind the layer, biases and Dropout to what
    `Dense.enable_lora` of Keras has, which is the branch beside it; it saves
    no activations.

    ```
    y = z + scale ((x A_p + a_p) B_p + b_p)        beside: parallel
          + scale ((z A_s + a_s) B_s + b_s)        behind: sequential
    z = x W + b, frozen
    ```

    B and b start as zeros, so that the layer begins as it was. `merge` writes
    the branches into the kernel and the bias of the layer, which then needs
    this wrapper no more:

    ```
    W <- W + scale (A_p B_p + W A_s B_s)
    b <- b + scale (a_p B_p + b_p + (b A_s + a_s) B_s + b_s)
    ```

    Args:
        layer: A `keras.layers.Dense` without activation. It becomes untrained.
        rank: Integer. Defaults to `8`.
        scale: Float. Defaults to `1.0`.
        dropout: Float in [0, 1), between A and B. Defaults to `0.0`.
        branches: Names of the branches. Defaults to
            `("parallel", "sequential")`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: What `layer` is called on.
        training: Python bool.

    Returns:
        What `layer` returns, adapted.

    Raises:
        TypeError: `layer` is not a `Dense`.
        ValueError: it has an activation, LoRA or codes; a branch has another
            name.

    Example:

    ```python
    dense = keras.layers.Dense(8)
    layer = keras_efficient.layers.Hydra(dense, rank=2)
    y = layer(keras.random.normal((2, 16)))
    layer.merge()
    ```

    Reference:
        - [Kim et al., 2023](https://arxiv.org/abs/2309.06922)
    """

    def __init__(
        self,
        layer,
        rank=8,
        scale=1.0,
        dropout=0.0,
        branches=BRANCHES,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(layer, keras.layers.Dense):
            raise TypeError(
                "`layer` must be a `keras.layers.Dense`. Received: "
                f"{layer} (of type {type(layer)})"
            )
        if layer.activation is not keras.activations.linear:
            raise ValueError(
                "`layer` must have no activation, which the branch behind it "
                "would see: put an `Activation` behind the wrapper. Received: "
                f"activation={layer.activation}"
            )
        if not branches or not set(branches) <= set(BRANCHES):
            raise ValueError(
                f"`branches` must be some of {BRANCHES}. Received: "
                f"branches={branches}"
            )
        check_integers(1, rank=rank)
        check_numbers("(0, inf)", scale=scale)
        check_numbers("[0, 1)", dropout=dropout)
        self.supports_masking = True
        self.layer = layer
        self.rank = rank
        self.scale = scale
        self.rate = dropout
        self.branches = tuple(branches)
        layer.trainable = False

    def build(self, input_shape):
        layer = self.layer
        if not layer.built:
            layer.build(input_shape)
        if layer.lora_enabled or layer.quantization_mode:
            raise ValueError(
                f"Layer '{layer.name}' has LoRA or is quantized, so that its "
                "kernel is not the one to merge into. Wrap it before."
            )
        shapes = {"parallel": input_shape[-1], "sequential": layer.units}
        self.low_rank = {}
        for name in self.branches:
            down, up = (
                keras.layers.Dense(
                    units,
                    use_bias=layer.use_bias,
                    kernel_initializer=initializer,
                    dtype=self.dtype_policy,
                    name=f"{name}_{part}",
                )
                for part, units, initializer in (
                    ("down", self.rank, "glorot_uniform"),
                    ("up", layer.units, "zeros"),
                )
            )
            down.build((None, shapes[name]))
            up.build((None, self.rank))
            self.low_rank[name] = [down, up]
        self.dropout = keras.layers.Dropout(
            self.rate, dtype=self.dtype_policy, name="dropout"
        )

    def call(self, inputs, training=None):
        z = self.layer(inputs)
        y = z
        for name, (down, up) in self.low_rank.items():
            hidden = down(inputs if name == "parallel" else z)
            hidden = self.dropout(hidden, training=training)
            y = y + self.scale * up(hidden)
        return y

    def merge(self):
        """Write the branches into the layer, and start them anew.

        Returns:
            The layer inside, which now does what both did in inference.

        Raises:
            ValueError: one of them is quantized.
        """
        layer = self.layer
        kernel = ops.convert_to_tensor(kernel_of(layer))
        bias = ops.convert_to_tensor(layer.bias) if layer.use_bias else 0.0
        new_kernel, new_bias = kernel, bias
        for name, (down, up) in self.low_rank.items():
            product = ops.matmul(kernel_of(down), kernel_of(up))
            if name == "sequential":
                product = ops.matmul(kernel, product)
            new_kernel = new_kernel + self.scale * product
            if layer.use_bias:
                inner = down.bias
                if name == "sequential":
                    inner = inner + ops.matmul(bias, down.kernel)
                shift = ops.matmul(inner, up.kernel) + up.bias
                new_bias = new_bias + self.scale * shift
        layer.kernel.assign(new_kernel)
        if layer.use_bias:
            layer.bias.assign(new_bias)
        for _, up in self.low_rank.values():
            for variable in up.variables:
                variable.assign(ops.zeros_like(variable))
        return layer

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "rank": self.rank,
            "scale": self.scale,
            "dropout": self.rate,
            "branches": self.branches,
        }

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
