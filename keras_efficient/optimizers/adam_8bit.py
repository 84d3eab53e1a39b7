import keras
from keras import ops

from keras_efficient.backend.arguments import check_numbers
from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import adam_8bit_step
from keras_efficient.ops.adam_8bit_arguments import Adam8bitArguments
from keras_efficient.ops.uniform_noise import uniform_noises
from keras_efficient.optimizers.optimizer_8bit import Optimizer8bit


@keras.saving.register_keras_serializable(package="keras_efficient")
class Adam8bit(Optimizer8bit):
    """Train with Adam at 2.1 bytes of state a parameter instead of 8.

    Each moment takes one byte an entry and two bytes for every 32: the first
    in steps that get finer towards 0, the second in equal steps of its root.
    All that happens to an entry happens in its group of 32, so that states
    shard as their parameters do. See `keras_efficient.ops.adam_8bit_step` and
    `keras_efficient.ops.quantize_8bit` for the equations and for where they
    differ from the paper.

    Bytes of state a parameter: 2 for the codes and 0.125 for the scales, at
    most 2.15 in all. Codes have the shape of the parameter. Scales are those
    of 32 entries in a row of the last axis, `(..., ceil(last / 32))`, unless
    rows that 32 does not divide would need more than 1.2 scales for 32
    entries, as rows of 33 entries do, or of 10: then groups run over the
    flattened parameter. Tensors of fewer than `min_size` elements keep plain
    Adam in float32.

    Gradients of embeddings that hold a few rows, as TensorFlow has them, are
    made dense, as in Keras' Adam: rows that are not among them go on by their
    momentum, nine tenths of all that a rare word moves, and decay.

    Under `keras.distribution` on JAX, codes, scales and float32 moments are
    divided as their parameter is, and each device steps on what it has, by its
    kernels, to the same bits as one device. Where shards do not hold whole
    groups, as of rows of 96 entries in four parts, another axis is divided, and
    gradient and new parameter move between devices, 3 bytes a parameter there.
    Where no axis has whole groups, the step is left to XLA, without kernels,
    and scales are on every device. See `zero`, too.

    Moments keep their precision for gradients from 1e-7, below which
    `epsilon` stops them in Adam, too, to 4e9. Larger moments are clipped.
    Non-finite entries of a gradient count as 0, so that they never enter the
    state; use `keras.callbacks.TerminateOnNaN` to stop instead.

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Defaults to `0.001`.
        beta_1: Float in [0, 1). Decay of the first moment. Defaults to `0.9`.
        beta_2: Float in [0, 1). Decay of the second moment. Defaults to
            `0.999`.
        epsilon: Positive float, added to the root of the second moment.
            Defaults to `1e-7`.
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
        name: String. Defaults to `None`: `"adam_8bit"`, `"adam_8bit_1"`,
            and so on.
        zero: Boolean. Under `keras.distribution` on JAX, whether devices that
            have the same part of a parameter divide its state, and the step,
            among them (ZeRO-1). What they make of it is gathered: 4 bytes a
            parameter and step. Elsewhere, and where no axis of the mesh
            divides the state, it changes nothing. Defaults to `False`.
        **kwargs: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor` and `gradient_accumulation_steps` of
            `keras.optimizers.Optimizer`. An exponential average or
            accumulated gradients take 4 bytes a parameter each.

    Raises:
        ValueError: an argument is outside its range.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    optimizer = keras_efficient.optimizers.Adam8bit(learning_rate=1e-3)
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """

    HAS_KERNEL = True
    MOMENTS = {"momentum": "int8", "velocity": "uint8"}

    def __init__(
        self,
        learning_rate=0.001,
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
        self._check_decays("beta_1", "beta_2")
        # The second moment of an entry may be 0.
        check_numbers("(0, inf)", epsilon=epsilon)

    def _kernel_arguments(self, learning_rate):
        return Adam8bitArguments(
            learning_rate=ops.cast(learning_rate, "float32"),
            step=ops.cast(self.iterations + 1, "int32"),
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            weight_rounding=self.weight_rounding,
        )

    def _step_8bit(self, gradient, state, groups):
        state = Adam8bitState(*state)
        options = self._options()
        noise = uniform_noises(groups, ops.cast(options["step"], "int32"))
        update, state = adam_8bit_step(
            gradient,
            state,
            noise=ops.reshape(noise, state.velocity_scale.shape),
            **options,
        )
        return update, *state

    def get_config(self):
        config = {
            name: getattr(self, name)
            for name in ("beta_1", "beta_2", "epsilon")
        }
        return {**super().get_config(), **config}
