import keras

from keras_efficient.ops.lion_8bit_step import lion_8bit_step
from keras_efficient.ops.lion_8bit_step import lion_step
from keras_efficient.optimizers.optimizer_8bit import Optimizer8bit


@keras.saving.register_keras_serializable(package="keras_efficient")
class Lion8bit(Optimizer8bit):
    """Train with Lion at 1.1 bytes of state a parameter instead of 4.

    Every entry moves by the learning rate, in the direction of the sign of
    its momentum, which takes one byte an entry and two for every 32. Layout,
    range and non-finite gradients are those of
    `keras_efficient.optimizers.Adam8bit`; see
    `keras_efficient.ops.lion_8bit_step` for the equations.

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Lion needs a third to a tenth of Adam's.
            Defaults to `0.001`.
        beta_1: Float in [0, 1). Weight of the momentum in the update.
            Defaults to `0.9`.
        beta_2: Float in [0, 1). Decay of the momentum. Defaults to `0.99`.
        exclude_layers: List of regular expressions. Tensors whose path one of
            them matches (`re.search`) keep plain Lion, `["output"]` for
            instance. Which these are is kept when a model is saved, and holds
            when it is loaded, whatever their paths are then. Defaults to
            `None`.
        weight_rounding: `"compensated"`, `"stochastic"` or `"nearest"`, how
            variables of 16 bits are rounded after a step; others are not. See
            `keras_efficient.optimizers.SixteenBit`. Defaults to
            `"compensated"`, at one byte a parameter more.
        min_size: Integer. Smaller tensors keep plain Lion in float32.
            Defaults to `4096`.
        name: String. Defaults to `None`: `"lion_8bit"`, `"lion_8bit_1"`,
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
    optimizer = keras_efficient.optimizers.Lion8bit(learning_rate=1e-4)
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - [Chen et al., 2023](https://arxiv.org/abs/2302.06675)
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """

    MOMENTS = {"momentum": "int8"}

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.99,
        exclude_layers=None,
        weight_rounding="compensated",
        min_size=4096,
        name=None,
        zero=False,
        **kwargs,
    ):
        super().__init__(
            learning_rate,
            min_size,
            weight_rounding,
            exclude_layers,
            name=name,
            zero=zero,
            **kwargs,
        )
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self._check_decays("beta_1", "beta_2")

    def _step_8bit(self, gradient, state, groups):
        return lion_8bit_step(gradient, *state, **self._options())

    def _step_plain(self, gradient, state, index):
        return lion_step(gradient, *state, **self._options())

    def _options(self):
        return {"beta_1": self.beta_1, "beta_2": self.beta_2}

    def get_config(self):
        return {**super().get_config(), **self._options()}
