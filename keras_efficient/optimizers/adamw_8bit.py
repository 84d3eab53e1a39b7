import keras

from keras_efficient.optimizers.adam_8bit import Adam8bit


@keras.saving.register_keras_serializable(package="keras_efficient")
class AdamW8bit(Adam8bit):
    """Train with AdamW at 2.1 bytes of state a parameter instead of 8.

    This is `keras_efficient.optimizers.Adam8bit` with weight decay that does
    not pass through the moments: each step multiplies the parameters by
    `1 - learning_rate * weight_decay` before it moves them.

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Defaults to `0.001`.
        weight_decay: Float. Defaults to `0.004`, as in
            `keras.optimizers.AdamW`. See `exclude_from_weight_decay`.
        beta_1: Float in [0, 1). Decay of the first moment. Defaults to `0.9`.
        beta_2: Float in [0, 1). Decay of the second moment. Defaults to
            `0.999`.
        epsilon: Positive float, added to the root of the second moment.
            Defaults to `1e-7`.
        exclude_layers: List of regular expressions. Tensors whose path one of
            them matches (`re.search`) keep plain AdamW, `["output"]` for
            instance. Which these are is kept when a model is saved, and holds
            when it is loaded, whatever their paths are then. Defaults to
            `None`.
        weight_rounding: `"compensated"`, `"stochastic"` or `"nearest"`, how
            variables of 16 bits are rounded after a step; others are not. See
            `keras_efficient.optimizers.SixteenBit`. Defaults to
            `"compensated"`, at one byte a parameter more.
        min_size: Integer. Smaller tensors keep plain AdamW. Defaults to
            `4096`.
        name: String. Defaults to `None`: `"adamw_8bit"`, `"adamw_8bit_1"`,
            and so on.
        zero: Boolean. Under `keras.distribution` on JAX, whether devices that
            have the same part of a parameter divide its state, and the step,
            among them (ZeRO-1). What they make of it is gathered: 4 bytes a
            parameter and step. Elsewhere, and where no axis of the mesh
            divides the state, it changes nothing. Defaults to `False`.
        **kwargs: See `keras_efficient.optimizers.Adam8bit`.

    Raises:
        ValueError: an argument is outside its range.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    optimizer = keras_efficient.optimizers.AdamW8bit(learning_rate=1e-3)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - [Loshchilov and Hutter, 2017](https://arxiv.org/abs/1711.05101)
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """

    def __init__(
        self,
        learning_rate=0.001,
        weight_decay=0.004,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        exclude_layers=None,
        weight_rounding="compensated",
        min_size=4096,
        name=None,
        zero=False,
        **kwargs,
    ):
        if weight_decay is None:
            raise ValueError(
                "`weight_decay` must be a float; `Adam8bit` has none. "
                "Received: weight_decay=None"
            )
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            min_size=min_size,
            exclude_layers=exclude_layers,
            weight_rounding=weight_rounding,
            weight_decay=weight_decay,
            name=name,
            zero=zero,
            **kwargs,
        )
