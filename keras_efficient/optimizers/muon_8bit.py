import math

import keras
from keras import ops

from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import adam_8bit_step
from keras_efficient.ops import adam_step
from keras_efficient.ops import sgd_8bit_step
from keras_efficient.ops.adam_8bit_arguments import Adam8bitArguments
from keras_efficient.ops.newton_schulz import newton_schulz
from keras_efficient.ops.quantize_8bit import scale_shape
from keras_efficient.ops.sgd_8bit_step import sgd_step
from keras_efficient.ops.uniform_noise import noise_at
from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.optimizers.adam_8bit import Adam8bit
from keras_efficient.optimizers.compressed_optimizer import CompressedOptimizer
from keras_efficient.optimizers.names import path_of
from keras_efficient.optimizers.optimizer_8bit import add_codes
from keras_efficient.optimizers.state_layout import code_shards


@keras.saving.register_keras_serializable(package="keras_efficient")
class Muon8bit(CompressedOptimizer):
    """Train with Muon at 1.1 bytes of state a parameter instead of 4.

    Matrices move along their momentum with all its singular values brought
    near 1, by five iterations of Newton and Schulz. This is
    `keras.optimizers.Muon` with a momentum of one byte an entry and two bytes
    for every 32; and with `keras_efficient.optimizers.Adam8bit`, of 2.1 bytes
    instead of 8, for all that is no matrix: tensors that have not two axes,
    embeddings, and the layers in `exclude_layers`. Tensors of fewer than
    `min_size` elements keep the same state in float32.

    Layout, range and non-finite gradients are those of
    `keras_efficient.optimizers.Adam8bit`. Under `keras.distribution` on
    JAX state is divided as its parameter is, but a step gathers matrices.

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Adam's is right, because of `rms_rate`.
            Defaults to `0.001`.
        adam_beta_1: Float in [0, 1). Decay of Adam's first moment. Defaults
            to `0.9`.
        adam_beta_2: Float in [0, 1). Decay of Adam's second moment. Defaults
            to `0.999`.
        epsilon: Positive float, added to the root of Adam's second moment.
            Defaults to `1e-7`.
        weight_decay: Float or `None`, of matrices. Defaults to `0.004`.
        adam_weight_decay: Float or `None`, of the rest. Defaults to `0.004`.
        adam_lr_ratio: Positive float. The learning rate of the rest is
            `adam_lr_ratio * learning_rate`. Defaults to `1.0`.
        momentum: Float in (0, 1). Defaults to `0.95`.
        nesterov: Boolean, whether the step looks ahead along the momentum.
            Defaults to `True`.
        ns_steps: Positive integer, the iterations. Defaults to `5`.
        rms_rate: Float or `None`. The update of an n x m matrix is multiplied
            by `rms_rate * sqrt(max(n, m))`, so that it is as large as Adam's.
            Defaults to `0.2`.
        exclude_embeddings: Boolean, whether embeddings get Adam. Defaults to
            `True`.
        exclude_layers: List of regular expressions. Tensors whose path one of
            them matches (`re.search`) get Adam, `["output"]` for instance. See
            `keras_efficient.optimizers.Adam8bit`. Defaults to `None`.
        weight_rounding: `"compensated"`, `"stochastic"` or `"nearest"`, how
            variables of 16 bits are rounded after a step; others are not. See
            `keras_efficient.optimizers.SixteenBit`. Defaults to
            `"compensated"`, at one byte a parameter more.
        min_size: Integer. Smaller tensors keep float32. Defaults to `4096`.
        name: String. Defaults to `None`: `"muon_8bit"`, `"muon_8bit_1"`, ...
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
    optimizer = keras_efficient.optimizers.Muon8bit(learning_rate=1e-3)
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - [Jordan et al., 2024](https://kellerjordan.github.io/posts/muon/)
        - [Liu et al., 2025](https://arxiv.org/abs/2502.16982)
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """

    HAS_KERNEL = True  # for what has Adam
    STEPS_BY_ENTRY = False
    EXCLUDES_TO_PLAIN = False  # they have Adam instead of Muon

    def __init__(
        self,
        learning_rate=0.001,
        adam_beta_1=0.9,
        adam_beta_2=0.999,
        epsilon=1e-7,
        weight_decay=0.004,
        adam_weight_decay=0.004,
        adam_lr_ratio=1.0,
        momentum=0.95,
        nesterov=True,
        ns_steps=5,
        rms_rate=0.2,
        exclude_embeddings=True,
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
            weight_decay=weight_decay,
            name=name,
            zero=zero,
            **kwargs,
        )
        self.adam_beta_1 = adam_beta_1
        self.adam_beta_2 = adam_beta_2
        self.epsilon = epsilon
        self.adam_weight_decay = adam_weight_decay
        self.adam_lr_ratio = adam_lr_ratio
        self.momentum = momentum
        self.nesterov = nesterov
        self.ns_steps = ns_steps
        self.rms_rate = rms_rate
        self.exclude_embeddings = exclude_embeddings
        self._check_decays("adam_beta_1", "adam_beta_2")
        for name in ("epsilon", "momentum", "ns_steps", "adam_lr_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"`{name}` must be positive. "
                    f"Received: {name}={getattr(self, name)}"
                )

    def build(self, variables):
        if not self.built:
            self._is_matrix = [
                not is_excluded and self._counts_as_matrix(variable)
                for variable, is_excluded in zip(
                    variables, self._find_excluded(variables)
                )
            ]
        super().build(variables)

    def _counts_as_matrix(self, variable):
        if len(variable.shape) != 2:
            return False
        is_embedding = "embedding" in path_of(variable).lower()
        return not (self.exclude_embeddings and is_embedding)

    def _moments(self, variable):
        index = self._get_variable_index(variable)
        both = Adam8bit.MOMENTS
        return {"momentum": "int8"} if self._is_matrix[index] else both

    def _add_compressed_state(self, variable):
        return add_codes(self, variable, self._moments(variable))

    def _add_plain_state(self, variable):
        return tuple(
            self._add(variable, name, variable.shape)
            for name in self._moments(variable)
        )

    def _has_kernel(self, index):
        return not self._is_matrix[index] and self.adam_lr_ratio == 1

    def _kernel_arguments(self, learning_rate):
        options = self._options()
        return Adam8bitArguments(
            learning_rate=ops.cast(learning_rate, "float32"),
            weight_rounding=self.weight_rounding,
            **{**options, "step": ops.cast(options["step"], "int32")},
        )

    def _find_shards(self, variable):
        # The product of a matrix needs all of it.
        if self._is_matrix[self._get_variable_index(variable)]:
            return None
        return code_shards(variable, self.zero)

    def _shapes_of_state(self, shape):
        # That of matrices is refused, and all others have Adam's.
        return None if len(shape) == 2 else [shape, scale_shape(shape)] * 2

    def _step_compressed(self, gradient, state, index, places=None):
        if self._is_matrix[index]:
            momentum, *state = sgd_8bit_step(
                gradient, *state, momentum=self.momentum, nesterov=self.nesterov
            )
            return self._orthogonal(momentum), *state
        options = self._options()
        noise = None
        if places is not None:
            step = ops.cast(options["step"], "int32")
            noise = noise_at(places, step, index)
        update, state = adam_8bit_step(
            gradient, Adam8bitState(*state), seed=index, noise=noise, **options
        )
        return self.adam_lr_ratio * update, *state

    def _step_plain(self, gradient, state, index):
        if self._is_matrix[index]:
            momentum, *state = sgd_step(
                gradient, *state, momentum=self.momentum, nesterov=self.nesterov
            )
            return self._orthogonal(momentum), *state
        update, *state = adam_step(gradient, *state, **self._options())
        return self.adam_lr_ratio * update, *state

    def _orthogonal(self, momentum):
        update = newton_schulz(momentum, self.ns_steps)
        if self.rms_rate is None:
            return update
        return update * (self.rms_rate * math.sqrt(max(update.shape)))

    def _options(self):
        return {
            "step": self.iterations + 1,
            "beta_1": self.adam_beta_1,
            "beta_2": self.adam_beta_2,
            "epsilon": self.epsilon,
        }

    def _decay_of(self, variable):
        index = self._get_variable_index(variable)
        is_matrix = self._is_matrix[index]
        decay = self.weight_decay if is_matrix else self.adam_weight_decay
        return decay if decay and self._use_weight_decay(variable) else 0.0

    def _apply_weight_decay(self, variables):
        for variable in variables:
            decay = self._decay_of(variable)
            if decay and not is_16_bit(variable):
                rate = ops.cast(self.learning_rate, variable.dtype)
                variable.assign(variable - variable * decay * rate)

    def get_config(self):
        config = {
            name: getattr(self, name)
            for name in (
                "adam_beta_1",
                "adam_beta_2",
                "epsilon",
                "adam_weight_decay",
                "adam_lr_ratio",
                "momentum",
                "nesterov",
                "ns_steps",
                "rms_rate",
                "exclude_embeddings",
                "min_size",
            )
        }
        return {**super().get_config(), **config}
