import keras

from keras_efficient.ops.sgd_8bit_step import sgd_8bit_step
from keras_efficient.ops.sgd_8bit_step import sgd_step
from keras_efficient.optimizers.optimizer_8bit import Optimizer8bit


@keras.saving.register_keras_serializable(package="keras_efficient")
class SGD8bit(Optimizer8bit):
    """Train with SGD and a momentum of 1.1 bytes a parameter instead of 4.

    The momentum takes one byte an entry and two for every 32. Layout, range,
    gradients that are sparse or not finite are those of
    `keras_efficient.optimizers.Adam8bit`; see
    `keras_efficient.ops.sgd_8bit_step` for the equations.

    Deviation from `keras.optimizers.SGD`: the momentum is one of gradients,
    not of steps, so that its size does not depend on the learning rate.
    Steps are equal while the learning rate is constant. After a change they
    follow at once; those of `keras.optimizers.SGD` go on at the old learning
    rate until the momentum has faded.

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Defaults to `0.01`.
        momentum: Float in (0, 1). Defaults to `0.9`.
        nesterov: Boolean, whether the step looks ahead along the momentum.
            Defaults to `False`.
        exclude_layers: List of regular expressions. Tensors whose path one of
            them matches (`re.search`) keep plain SGD, `["output"]` for
            instance. Which these are is kept when a model is saved, and holds
            when it is loaded, whatever their paths are then. Defaults to
            `None`.
        weight_rounding: `"compensated"`, `"stochastic"` or `"nearest"`, how
            variables of 16 bits are rounded after a step; others are not. See
            `keras_efficient.optimizers.SixteenBit`. Defaults to
            `"compensated"`, at one byte a parameter more.
        min_size: Integer. Smaller tensors keep their momentum in float32.
            Defaults to `4096`.
        name: String. Defaults to `None`: `"sgd_8bit"`, `"sgd_8bit_1"`,
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
    optimizer = keras_efficient.optimizers.SGD8bit(0.01, nesterov=True)
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - [Sutskever et al., 2013](https://proceedings.mlr.press/v28/sutskever13.html)
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """  # noqa: E501

    MOMENTS = {"momentum": "int8"}

    def __init__(
        self,
        learning_rate=0.01,
        momentum=0.9,
        nesterov=False,
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
        self.momentum = momentum
        self.nesterov = nesterov
        if not 0 < momentum < 1:
            raise ValueError(
                "`momentum` must be in (0, 1); without momentum, use "
                "`keras.optimizers.SGD`, which then keeps no state. "
                f"Received: momentum={momentum}"
            )

    def _step_8bit(self, gradient, state, groups):
        return sgd_8bit_step(gradient, *state, **self._options())

    def _step_plain(self, gradient, state, index):
        return sgd_step(gradient, *state, **self._options())

    def _options(self):
        return {"momentum": self.momentum, "nesterov": self.nesterov}

    def get_config(self):
        return {**super().get_config(), **self._options()}
