import math

import keras
from keras import ops

from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import adam_8bit_step
from keras_efficient.ops import adam_step
from keras_efficient.ops import sink_gd_step
from keras_efficient.ops.quantize_8bit import scale_shape
from keras_efficient.optimizers.check_options import check_choices
from keras_efficient.optimizers.check_options import check_decays
from keras_efficient.optimizers.state_layout import scale_layout
from keras_efficient.optimizers.state_layout import state_layout

SMALLEST_8BIT = 4096  # elements; smaller tensors have Adam in float32


@keras.saving.register_keras_serializable(package="keras_efficient")
class SinkGD(keras.optimizers.Optimizer):
    """Gradient descent with normalized matrices, which needs no state.

    The gradient of a matrix is scaled, a row and a column at a time, until
    all rows and all columns have a root mean square of 1, and subtracted.
    See `keras_efficient.ops.sink_gd_step` for the equations and for where
    they differ from the paper.

    Bytes of state a parameter: 0 for matrices, kernels of convolutions among
    them, which are matrices with one column for each entry of the last axis.
    The rest has Adam: tensors of one axis or less, matrices with a side of 1,
    embeddings, the layers in `exclude_layers` (the paper excludes the output
    of a language model), and tensors of fewer than `min_size` elements. That
    is 2.13 bytes for tensors of at least 4096 elements, see
    `keras_efficient.ops.adam_8bit_step`, and 8 for smaller ones or for all
    (`rest="adam"`). Under `keras.distribution` it has the layout of its
    parameter, as in `keras_efficient.optimizers.Adam8bit`.

    Two deviations from the paper. Small matrices go to Adam, because their
    state costs nothing and Adam averages over steps, which this does not;
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
        min_size: Integer. Smaller tensors get Adam. Defaults to `4096`.
        rest: `"adam8bit"` or `"adam"`, what tensors of at least 4096 elements
            get that are not normalized. Defaults to `"adam8bit"`.
        exclude_layers: List of strings. Tensors whose path contains one of
            them get Adam, `["output"]` for instance. Defaults to `None`.
        exclude_embeddings: Boolean, whether embeddings get Adam. Defaults to
            `True`.
        name: String. Defaults to `"sink_gd"`.
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

    def __init__(
        self,
        learning_rate=0.02,
        alpha=0.05,
        sinkhorn_iterations=5,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        min_size=4096,
        rest="adam8bit",
        exclude_layers=None,
        exclude_embeddings=True,
        name="sink_gd",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.alpha = alpha
        self.sinkhorn_iterations = sinkhorn_iterations
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.min_size = min_size
        self.rest = rest
        self.exclude_layers = list(exclude_layers or [])
        self.exclude_embeddings = exclude_embeddings
        self._validate()

    def _validate(self):
        check_decays(self, "beta_1", "beta_2")
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
        check_choices(self, rest=("adam8bit", "adam"))

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        # For each variable, whether it counts as a matrix and its state,
        # which is empty where the gradient is normalized.
        self._is_matrix = [self._counts_as_matrix(v) for v in variables]
        self._states = [
            ()
            if is_matrix and math.prod(variable.shape) >= self.min_size
            else self._add_rest_state(variable)
            for variable, is_matrix in zip(variables, self._is_matrix)
        ]

    def _counts_as_matrix(self, variable):
        shape = variable.shape
        if len(shape) < 2 or shape[-1] < 2 or math.prod(shape[:-1]) < 2:
            return False
        if self.exclude_embeddings and "embedding" in variable.name:
            return False
        return not any(word in variable.path for word in self.exclude_layers)

    def _add_rest_state(self, variable):
        shape = tuple(variable.shape)
        layout = state_layout(variable, shape)
        moment = (shape, "float32", layout)
        slots = {"momentum": moment, "velocity": moment}
        if self.rest == "adam8bit" and math.prod(shape) >= SMALLEST_8BIT:
            scale = (scale_shape(shape), "float16", scale_layout(variable))
            slots = Adam8bitState(
                momentum_codes=(shape, "int8", layout),
                momentum_scale=scale,
                velocity_codes=(shape, "uint8", layout),
                velocity_scale=scale,
            )._asdict()
        path = variable.path.replace("/", "_")
        return tuple(
            self.add_variable(
                shape, dtype=dtype, layout=layout, name=f"{path}_{name}"
            )
            for name, (shape, dtype, layout) in slots.items()
        )

    def _rest_step(self, gradient, state, seed):
        options = {
            "step": self.iterations + 1,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }
        if len(state) == len(Adam8bitState._fields):
            state = Adam8bitState(*state)
            return adam_8bit_step(gradient, state, seed=seed, **options)
        update, *state = adam_step(gradient, *state, **options)
        return update, state

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        slots = self._states[index]
        state = [ops.convert_to_tensor(slot) for slot in slots]
        # TensorFlow's gradient of an embedding is sparse; this makes it dense.
        gradient = ops.reshape(gradient, variable.shape)
        if slots:
            update, state = self._rest_step(gradient, state, seed=index)
        else:
            update = sink_gd_step(gradient, self.sinkhorn_iterations)
        for slot, value in zip(slots, state):
            self.assign(slot, value)
        scale = self.alpha if self._is_matrix[index] else 1.0
        update = ops.cast(learning_rate, "float32") * scale * update
        self.assign_sub(variable, ops.cast(update, variable.dtype))

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
        config["exclude_layers"] = list(self.exclude_layers)
        return {**super().get_config(), **config}
