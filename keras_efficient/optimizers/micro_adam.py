import math

import keras
from keras import ops

from keras_efficient.ops import MicroAdamState
from keras_efficient.ops.micro_adam_arguments import MicroAdamArguments
from keras_efficient.ops.micro_adam_arguments import block_axes
from keras_efficient.ops.micro_adam_arguments import flat_shapes
from keras_efficient.ops.micro_adam_arguments import state_shapes
from keras_efficient.ops.micro_adam_step import micro_adam_steps
from keras_efficient.optimizers.batched_step import assign
from keras_efficient.optimizers.compressed_optimizer import CompressedOptimizer
from keras_efficient.optimizers.state_layout import Shards

# Axes of each state before those of its blocks.
BEFORE_BLOCKS = (1, 1, None, 0, 0, 0, 0)
LARGEST_BLOCK = 2**15  # what the int16 index of an entry can count


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
    kernels: its state is divided where it can be, and 4 to 12 bytes are moved.
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
            0, the step is faster and takes 0.58 bytes a parameter. Defaults
            to `0.01`.
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
        density=0.01,
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
        self._validate()

    def _validate(self):
        self._check_decays("beta_1", "beta_2")
        if not self.epsilon > 0:
            raise ValueError(
                "`epsilon` must be positive: the second moment of most "
                f"entries is 0. Received: epsilon={self.epsilon}"
            )
        if not 0 <= self.density <= 1:
            raise ValueError(
                "`density` must be in [0, 1]: it is the part of each gradient "
                f"that enters the window. Received: density={self.density}"
            )
        if not 0 <= self.alpha <= 1:
            raise ValueError(
                "`alpha` must be in [0, 1]: it is the part of the error "
                f"feedback that is applied. Received: alpha={self.alpha}"
            )
        if not 1 <= self.window:
            raise ValueError(
                f"`window` must be at least 1. Received: window={self.window}"
            )
        self._check_bucket_size()
        if not 0 < self.block_size <= LARGEST_BLOCK:
            raise ValueError(
                f"`block_size` must be from 1 to {LARGEST_BLOCK}, so that the "
                "place of an entry fits its int16 index. Received: "
                f"block_size={self.block_size}"
            )
        if self.block_size % self.bucket_size:
            raise ValueError(
                "`block_size` must be a multiple of `bucket_size`. Received: "
                f"block_size={self.block_size}, "
                f"bucket_size={self.bucket_size}"
            )
        self._check_choices(
            rounding=("stochastic", "nearest"),
            bias_correction=("window", "full"),
            value_dtype=("bfloat16", "float32"),
        )

    def _add_compressed_state(self, variable):
        dtypes = MicroAdamState(
            indices="uint8" if self.block_size <= 256 else "int16",
            values=self.value_dtype,
            written="int32",
            codes="uint8",
            low="bfloat16",
            high="bfloat16",
            velocity="float32",
        )
        shapes = state_shapes(tuple(variable.shape), **self._sizes())
        shards = self._shards[self._get_variable_index(variable)]
        slots = []
        for name, before, *slot in zip(
            MicroAdamState._fields, BEFORE_BLOCKS, shapes, dtypes
        ):
            is_divided = shards and before is not None
            slots.append(
                self._add(
                    variable,
                    name,
                    *slot,
                    layout=shards.layout(before) if is_divided else None,
                    places=() if before is None else (before,),
                )
            )
        return MicroAdamState(*slots)

    def _find_shards(self, variable):
        shape = tuple(variable.shape)
        blocks = block_axes(shape, self.block_size)
        if blocks:
            return Shards(variable, blocks, shape, self.zero)
        blocks, rest = divmod(math.prod(shape), self.block_size)
        if not rest:  # they straddle rows
            view = blocks, self.block_size
            return Shards(variable, (blocks,), view, self.zero)
        # The last one is not full: in one piece, if that was to be.
        shards = Shards(variable, (blocks + 1,), shape, self.zero, parts=(1,))
        return shards if shards.is_divided else None

    def _axes_before_blocks(self, slots):
        return BEFORE_BLOCKS

    def _flat_shapes(self):
        places = {id(v): i for i, v in enumerate(self.variables)}
        return {
            places[id(slot)]: shape
            for slots in self._states
            if len(slots) == len(MicroAdamState._fields)
            for slot, shape in zip(
                slots, flat_shapes([tuple(slot.shape) for slot in slots])
            )
            if tuple(slot.shape) != shape
        }

    def _sizes(self):
        return {
            # Without entries it is one row of nothing.
            "window": self.window if self.density else 1,
            "k": math.ceil(self.density * self.block_size),
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
            **self._sizes(),
        )

    def _step_compressed(self, gradient, state, index, places=None):
        ((update, state),) = self._step_blocks(
            [gradient], [state], [index], places
        )
        return update, *state

    def _step_batch(self, rows, learning_rate):
        seeds, _, _, gradients, states = zip(*rows)
        results = self._step_blocks(gradients, states, seeds)
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
                "density",
                "block_size",
                "bucket_size",
                "min_size",
                "alpha",
                "rounding",
                "bias_correction",
                "value_dtype",
            )
        }
        return {**super().get_config(), **config}
