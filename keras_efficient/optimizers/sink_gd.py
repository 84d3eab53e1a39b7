import math

import keras

from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import adam_8bit_step
from keras_efficient.ops import sink_gd_step
from keras_efficient.optimizers.adam_8bit import Adam8bit
from keras_efficient.optimizers.compressed_optimizer import CompressedOptimizer
from keras_efficient.optimizers.optimizer_8bit import add_codes

SMALLEST_8BIT = 4096  # elements; smaller tensors have Adam in float32


@keras.saving.register_keras_serializable(package="keras_efficient")
class SinkGD(CompressedOptimizer):
    """Descend along normalized matrices, which needs no state.

    The gradient of a matrix is scaled, a row and a column at a time, until
    all rows and all columns have a root mean square of 1, and subtracted.
    See `keras_efficient.ops.sink_gd_step` for the equations and for where
    they differ from the paper.

    Bytes of state a parameter: 0 for matrices. Kernels of convolutions are
    matrices with one column for each entry of the last axis. The rest has
    Adam: tensors of one axis or less, matrices with a side of 1, embeddings,
    the layers in `exclude_layers` (the paper excludes the output of a language
    model), and tensors of fewer than `min_size` elements. Adam takes 2.13 bytes
    for tensors of at least 4096 elements, see
    `keras_efficient.ops.adam_8bit_step`, and 8 for smaller ones or for all
    (`rest="adam"`). Under `keras.distribution` its state has the layout of its
    parameter, as in `keras_efficient.optimizers.Adam8bit`.

    There are two deviations from the paper. Small matrices go to Adam: their
    state costs little, and Adam averages over steps, which this does not.
    `min_size=0` sends them back. Their step is multiplied by `alpha`, too,
    as it takes the place of a normalized one.

    There is no momentum: noise of a small batch goes straight into the
    parameters, and the step does not get smaller near a minimum. Use large
    batches and a learning rate that decays.

    Entries of a gradient that are not finite count as 0.

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Defaults to `0.02`.
        alpha: Positive float. The learning rate of matrices is
            `alpha * learning_rate`. Defaults to `0.05`.
        sinkhorn_iterations: Positive integer, how often rows and columns are
            normalized. Defaults to `5`.
        beta_1: Float in [0, 1). Decay of the first moment of Adam. Defaults
            to `0.9`.
        beta_2: Float in [0, 1). Decay of the second moment of Adam. Defaults
            to `0.999`.
        epsilon: Positive float, added to the root of the second moment of
            Adam. Defaults to `1e-7`.
        weight_rounding: `"compensated"`, `"stochastic"` or `"nearest"`, how
            variables of 16 bits are rounded after a step; others are not. See
            `keras_efficient.optimizers.SixteenBit`. Defaults to
            `"compensated"`, at one byte a parameter more.
        min_size: Integer. Smaller tensors get Adam. Defaults to `4096`.
        rest: `"adam8bit"` or `"adam"`, what tensors of at least 4096 elements
            get that are not normalized. Defaults to `"adam8bit"`.
        exclude_layers: List of regular expressions. Tensors whose path one of
            them matches (`re.search`) get Adam, `["output"]` for
            instance. Which these are is kept when a model is saved, and holds
            when it is loaded, whatever their paths are then. Defaults to
            `None`.
        exclude_embeddings: Boolean, whether embeddings get Adam. Defaults to
            `True`.
        name: String. Defaults to `None`: `"sink_gd"`, `"sink_gd_1"` and so on.
        zero: Boolean. Under `keras.distribution` on JAX, whether devices that
            have the same part of a parameter divide its state, and the step,
            among them (ZeRO-1). What they make of it is gathered: 4 bytes a
            parameter and step. Elsewhere, and where no axis of the mesh
            divides the state, it changes nothing. Defaults to `False`.
        **kwargs: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor` and `gradient_accumulation_steps` of
            `keras.optimizers.Optimizer`. Clipping does nothing to a matrix,
            which is normalized after it. An exponential average or accumulated
            gradients take 4 bytes a parameter each.

    Raises:
        ValueError: an argument is outside its range.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    optimizer = keras_efficient.optimizers.SinkGD(learning_rate=0.02)
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - [Scetbon et al., 2025](https://arxiv.org/abs/2502.06742)
    """

    STEPS_BY_ENTRY = False

    def __init__(
        self,
        learning_rate=0.02,
        alpha=0.05,
        sinkhorn_iterations=5,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        weight_rounding="compensated",
        min_size=4096,
        rest="adam8bit",
        exclude_layers=None,
        exclude_embeddings=True,
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
        self.alpha = alpha
        self.sinkhorn_iterations = sinkhorn_iterations
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.rest = rest
        self.exclude_embeddings = exclude_embeddings
        self._validate()

    def _validate(self):
        self._check_decays("beta_1", "beta_2")
        for name in ("alpha", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"`{name}` must be positive. "
                    f"Received: {name}={getattr(self, name)}"
                )
        if self.sinkhorn_iterations < 1:
            raise ValueError(
                "`sinkhorn_iterations` must be at least 1. Received: "
                f"sinkhorn_iterations={self.sinkhorn_iterations}"
            )
        self._check_choices(rest=("adam8bit", "adam"))

    def build(self, variables):
        if not self.built:
            self._is_matrix = [
                not is_excluded and self._counts_as_matrix(variable)
                for variable, is_excluded in zip(
                    variables, self._find_excluded(variables)
                )
            ]
        super().build(variables)

    def _is_compressible(self, variable):
        return super()._is_compressible(variable) and self._counts_as_matrix(
            variable
        )

    def _counts_as_matrix(self, variable):
        shape = variable.shape
        if len(shape) < 2 or shape[-1] < 2 or math.prod(shape[:-1]) < 2:
            return False
        return not (self.exclude_embeddings and "embedding" in variable.name)

    def _add_compressed_state(self, variable):
        return ()

    def _add_plain_state(self, variable):
        shape = tuple(variable.shape)
        if self.rest != "adam8bit" or math.prod(shape) < SMALLEST_8BIT:
            return super()._add_plain_state(variable)
        return add_codes(self, variable, Adam8bit.MOMENTS)

    def _shapes_of_state(self, shape):
        return []

    def _step_compressed(self, gradient, state, index, places=None):
        return (sink_gd_step(gradient, self.sinkhorn_iterations),)

    def _step_plain(self, gradient, state, index):
        if len(state) < len(Adam8bitState._fields):
            return super()._step_plain(gradient, state, index)
        update, state = adam_8bit_step(
            gradient, Adam8bitState(*state), seed=index, **self._options()
        )
        return update, *state

    def _move(self, variable, update, learning_rate):
        if self._is_matrix[self._get_variable_index(variable)]:
            update = self.alpha * update
        super()._move(variable, update, learning_rate)

    def get_config(self):
        config = {
            name: getattr(self, name)
            for name in (
                "alpha",
                "sinkhorn_iterations",
                "beta_1",
                "beta_2",
                "epsilon",
                "min_size",
                "rest",
                "exclude_embeddings",
            )
        }
        return {**super().get_config(), **config}
