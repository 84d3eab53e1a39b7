import math

import keras
from keras import ops

from keras_efficient.ops import MicroAdamState
from keras_efficient.ops.micro_adam_arguments import MicroAdamArguments
from keras_efficient.ops.micro_adam_arguments import state_shapes
from keras_efficient.ops.micro_adam_step import micro_adam_steps
from keras_efficient.optimizers.batched_step import assign
from keras_efficient.optimizers.compressed_optimizer import CompressedOptimizer
from keras_efficient.optimizers.micro_adam_options import check_options
from keras_efficient.optimizers.micro_adam_state import BEFORE_BLOCKS
from keras_efficient.optimizers.micro_adam_state import add_state
from keras_efficient.optimizers.micro_adam_state import block_shards
from keras_efficient.optimizers.micro_adam_state import flat_state_shapes
from keras_efficient.optimizers.micro_adam_state import places_of_blocks
from keras_efficient.optimizers.names import setting_of

DENSITY = 0.01


@keras.saving.register_keras_serializable(package="keras_efficient")
class MicroAdam(CompressedOptimizer):
    """Train at 0.9 bytes a parameter, by MicroAdam changed to keep Adam's rate.

    By default it is not the algorithm of the paper; Adam keeps 8 bytes.

    Of each gradient only the largest 1 % of the entries (3 of each block of
    256) enter the moments, which are means over a window of the last 10
    steps. The rest moves by one second moment for each block, and by a
    momentum that is kept in four bits an entry: the error feedback of the
    paper, of which a part is applied at each step. See
    `keras_efficient.ops.micro_adam_step` for the equations and for where they
    differ from the paper, and why.

    The learning rate is Adam's. The setting of the paper, which wants
    another, is `alpha=0.0, bias_correction="full", rounding="nearest"`.

    Bytes of state a parameter, at the defaults: 0.35 for the window (one
    byte for the place and two for the value, 3 of 256 entries, 10 times),
    0.5 for the error feedback, 0.06 for the bounds of its buckets and 0.02
    for the second moments of the blocks: 0.94 in all, at most 0.95 from 8200
    elements on and 0.98 from 4096. Tensors of fewer than `min_size` elements
    keep plain Adam in float32.

    Under `keras.distribution` on JAX, state is divided as its parameter is, and
    each device steps on what it has, by its kernels, to the same bits as one
    device: nothing is moved where shards hold whole blocks. Of others, such as
    (512, 768) over four parts of its columns, another axis is divided, and
    gradient and new parameter move between devices, 3 bytes a parameter there.
    A parameter whose size `block_size` does not divide is left to XLA, without
    kernels: its state is divided where it can be, and 4 to 13 bytes are moved.
    So fill up a vocabulary of 50,257 words to 50,304. See `zero`, too.

    Non-finite entries of a gradient count as 0, so that they never enter the
    state. The parameters then move by what is left in the window; use
    `keras.callbacks.TerminateOnNaN` to stop instead.

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Defaults to `0.001`.
        beta_1: Float in [0, 1). Decay of the first moment within the window.
            Defaults to `0.9`.
        beta_2: Float in [0, 1). Decay of the second moment within the window.
            Defaults to `0.999`.
        epsilon: Positive float, added to the root of the second moment.
            Defaults to `1e-7`.
        window: Integer, the number of steps that the moments look back.
            Defaults to `10`.
        density: Float in [0, 1], the part of each block that enters the
            window; `ceil(density * block_size)` entries. Without a window, at
            0, the step is faster and takes 0.58 bytes a parameter; it came to
            the same loss or a little higher, and bears no rates as high. Or a
            dictionary from paths of tensors (or regular expressions) to it,
            such as `keras_efficient.utils.layer_budgets` returns, `0.01` for
            others; kernels are not used then. Defaults to `0.01`.
        block_size: Integer, a multiple of `bucket_size`, at most 32768.
            Indices take one byte up to 256 and two beyond. Defaults to `256`.
        bucket_size: Even integer, the number of entries that share the
            bounds of the error feedback. Defaults to `64`.
        exclude_layers: List of regular expressions. Tensors whose path one of
            them matches (`re.search`) keep plain Adam, `["output"]` for
            instance. Which these are is kept when a model is saved, and holds
            when it is loaded, whatever their paths are then. Defaults to
            `None`.
        weight_rounding: `"compensated"`, `"stochastic"` or `"nearest"`, how
            variables of 16 bits are rounded after a step; others are not. See
            `keras_efficient.optimizers.SixteenBit`. Defaults to
            `"compensated"`, at one byte a parameter more.
        min_size: Integer. Smaller tensors keep plain Adam. Defaults to
            `4096`.
        alpha: Float in [0, 1], the part of the error feedback that moves the
            parameters at each step; its momentum decays by `1 - alpha`.
            Defaults to `0.4`.
        rounding: `"stochastic"` or `"nearest"`, how the error feedback is
            rounded to four bits. Defaults to `"stochastic"`.
        bias_correction: `"window"`, by the weights of the steps in the
            window, or `"full"`, Adam's. Defaults to `"window"`.
        value_dtype: `"bfloat16"` or `"float32"`, of the entries in the
            window. Defaults to `"bfloat16"`.
        name: String. Defaults to `None`: `"micro_adam"`, `"micro_adam_1"`,
            and so on.
        zero: Boolean. Under `keras.distribution` on JAX, whether devices that
            have the same part of a parameter divide its state, and the step,
            among them (ZeRO-1). What they make of it is gathered: 4 bytes a
            parameter and step. Elsewhere, and where no axis of the mesh
            divides the state, it changes nothing. Defaults to `False`.
        **kwargs: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor` and `gradient_accumulation_steps` of
            `keras.optimizers.Optimizer`. An exponential average or accumulated
            gradients take 4 bytes a parameter each.

    Raises:
        ValueError: an argument is outside its range.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    optimizer = keras_efficient.optimizers.MicroAdam(learning_rate=1e-3)
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - [Modoranu et al., 2024](https://arxiv.org/abs/2405.15593)
    """

    HAS_KERNEL = True

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        window=10,
        density=DENSITY,
        block_size=256,
        bucket_size=64,
        exclude_layers=None,
        weight_rounding="compensated",
        min_size=4096,
        alpha=0.4,
        rounding="stochastic",
        bias_correction="window",
        value_dtype="bfloat16",
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
        self.epsilon = epsilon
        self.window = window
        self.density = density
        self.block_size = block_size
        self.bucket_size = bucket_size
        self.alpha = alpha
        self.rounding = rounding
        self.bias_correction = bias_correction
        self.value_dtype = value_dtype
        check_options(self)

    def _add_compressed_state(self, variable):
        density = setting_of(self.density, variable, DENSITY)
        shapes = state_shapes(tuple(variable.shape), **self._sizes(density))
        shards = self._shards[self._get_variable_index(variable)]
        return add_state(self, variable, shapes, shards)

    def _find_shards(self, variable):
        return block_shards(variable, self.block_size, self.zero)

    def _shapes_of_state(self, shape):
        if isinstance(self.density, dict):  # it takes more than a shape
            return None
        return state_shapes(shape, **self._sizes(self.density))

    def _axes_before_blocks(self, slots):
        return BEFORE_BLOCKS

    def _flat_shapes(self):
        return flat_state_shapes(self)

    def _sizes(self, density):
        return {
            # Without entries it is one row of nothing.
            "window": self.window if density else 1,
            "k": math.ceil(density * self.block_size),
            "block_size": self.block_size,
            "bucket_size": self.bucket_size,
        }

    def _kernel_arguments(self, learning_rate):
        return MicroAdamArguments(
            learning_rate=ops.cast(learning_rate, "float32"),
            step=ops.cast(self.iterations + 1, "int32"),
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            alpha=self.alpha,
            rounding=self.rounding,
            bias_correction=self.bias_correction,
            weight_rounding=self.weight_rounding,
            **self._sizes(self.density),
        )

    def _has_kernel(self, index):
        # Kernels take tensors of one density.
        return self.HAS_KERNEL and not isinstance(self.density, dict)

    def _step_compressed(self, gradient, state, index, places=None):
        if places is not None:
            # Of each entry.
            places = ops.expand_dims(places, -1) * self.block_size
            places = [places + ops.arange(self.block_size, dtype="int32")]
        ((update, state),) = self._step_blocks(
            [gradient], [state], [index], places
        )
        return update, *state

    def _step_batch(self, rows, learning_rate):
        alike = {}  # of the same window
        for row in rows:
            shape = row[4][0].shape
            alike.setdefault((shape[0], shape[-1]), []).append(row)
        for rows in alike.values():
            seeds, variables, _, gradients, states = zip(*rows)
            places = [places_of_blocks(v, self.block_size) for v in variables]
            results = self._step_blocks(gradients, states, seeds, places)
            for row, (update, state) in zip(rows, results):
                assign(self, row, (update, *state), learning_rate)

    def _step_blocks(self, gradients, states, seeds, places=None):
        return micro_adam_steps(
            gradients,
            [MicroAdamState(*state) for state in states],
            seeds=seeds,
            block_size=self.block_size,
            alpha=self.alpha,
            rounding=self.rounding,
            bias_correction=self.bias_correction,
            places=places,
            **self._options(),
        )

    def get_config(self):
        config = {
            name: getattr(self, name)
            for name in (
                "beta_1",
                "beta_2",
                "epsilon",
                "window",
                "block_size",
                "bucket_size",
                "min_size",
                "alpha",
                "rounding",
                "bias_correction",
                "value_dtype",
            )
        }
        config["density"] = self.density
        if isinstance(self.density, dict):
            config["density"] = dict(self.density)
        return {**super().get_config(), **config}
