import math

import keras
import numpy as np
from keras import ops

from keras_efficient.ops import ld_adam_step
from keras_efficient.optimizers.compressed_optimizer import CompressedOptimizer
from keras_efficient.optimizers.names import setting_of

RANK = 16


@keras.saving.register_keras_serializable(package="keras_efficient")
class LDAdam(CompressedOptimizer):
    """Train with Adam whose moments live in a subspace of few dimensions.

    Both moments of a matrix are kept in the `rank` directions that matter
    most for its gradients. These directions follow the gradients at every
    step, and the moments are turned with them. What does not fit into the
    subspace is not lost: it is kept, in four bits an entry by default, and
    added to the next gradient. See `keras_efficient.ops.ld_adam_step` for the
    equations and for where they differ from the paper.

    Bytes of state for a matrix of n rows and c columns, n the smaller number
    (the other way round is the same), at rank r:

    - `4 (n r + 2 r c)` for the subspace and the two moments, in float32: 0.19
      a parameter for 1024 x 1024 at rank 16;
    - for the error feedback, a parameter: 0.56 if `"quantized"` (half a byte
      and the bounds of buckets of 64), 4 if `"full"`, 0 if `"off"`.

    Kernels with more axes, of convolutions for instance, are matrices with
    one column for each entry of the last axis. Plain Adam in float32, of 8
    bytes a parameter, has the rest: tensors of one axis or less, of fewer than
    `min_size` elements or with a side shorter than `rank`, embeddings and the
    layers in `exclude_layers`. The paper, too, gives a low rank to linear
    layers inside the network only.

    Under `keras.distribution` on JAX all state is divided by the axes of the
    mesh that divide its parameter: the subspace along its rows, moments along
    their columns, the quantized error feedback along its buckets, as far as
    these sizes allow. XLA divides the step: results are those of one device up
    to rounding. See `zero`, too.

    A step costs a QR decomposition of n x r and eight products with r x c, on
    top of Adam: choose it for the memory.

    Entries of a gradient that are not finite count as 0, so that they never
    enter the state. The parameters then move by their first moment; use
    `keras.callbacks.TerminateOnNaN` to stop instead.

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Defaults to `0.001`.
        rank: Positive integer, the dimensions of the subspace. Or a dictionary
            from paths of tensors (or regular expressions) to it, such as
            `keras_efficient.utils.layer_budgets` returns, 16 for others.
            Defaults to `16`.
        beta_1: Float in [0, 1). Decay of the first moment. Defaults to
            `0.908`.
        beta_2: Float in [0, 1). Decay of the second moment. Defaults to
            `0.99`.
        rho: Float in [0, 1). How much of the first moment, the rest being
            gradient, is in what the subspace follows. Defaults to `0.908`.
        epsilon: Positive float, added to the root of the second moment.
            Defaults to `1e-7`, as in all of Keras; the authors take `1e-8`.
        error_feedback: `"quantized"`, `"full"` or `"off"`. Without it
            gradients outside of the subspace are lost. Defaults to
            `"quantized"`.
        bucket_size: Even integer, the number of entries that share the
            bounds of the quantized error feedback. Defaults to `64`.
        rounding: `"stochastic"` or `"nearest"`, how the error feedback is
            rounded to four bits; both reached the same loss on the digits.
            Defaults to `"stochastic"`.
        weight_rounding: `"compensated"`, `"stochastic"` or `"nearest"`, how
            variables of 16 bits are rounded after a step; others are not. See
            `keras_efficient.optimizers.SixteenBit`. Defaults to
            `"compensated"`, at one byte a parameter more.
        min_size: Integer. Smaller tensors keep plain Adam. Defaults to
            `4096`.
        exclude_layers: List of regular expressions. Tensors whose path one of
            them matches (`re.search`) keep plain Adam, `["output"]` for
            instance. Which these are is kept when a model is saved, and holds
            when it is loaded, whatever their paths are then. Defaults to
            `None`.
        exclude_embeddings: Boolean, whether embeddings keep plain Adam.
            Defaults to `True`.
        name: String. Defaults to `None`: `"ld_adam"`, `"ld_adam_1"` and so on.
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
    optimizer = keras_efficient.optimizers.LDAdam(learning_rate=1e-3)
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - [Robert et al., 2024](https://arxiv.org/abs/2410.16103)
    """

    def __init__(
        self,
        learning_rate=0.001,
        rank=RANK,
        beta_1=0.908,
        beta_2=0.99,
        rho=0.908,
        epsilon=1e-7,
        error_feedback="quantized",
        bucket_size=64,
        rounding="stochastic",
        weight_rounding="compensated",
        min_size=4096,
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
        self.rank = rank
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.rho = rho
        self.epsilon = epsilon
        self.error_feedback = error_feedback
        self.bucket_size = bucket_size
        self.rounding = rounding
        self.exclude_embeddings = exclude_embeddings
        self._validate()

    def _validate(self):
        self._check_decays("beta_1", "beta_2", "rho")
        if not self.epsilon > 0:
            raise ValueError(
                "`epsilon` must be positive: the second moment of an entry "
                f"may be 0. Received: epsilon={self.epsilon}"
            )
        ranks = self.rank if isinstance(self.rank, dict) else {None: self.rank}
        if min(ranks.values(), default=1) < 1:
            raise ValueError(
                f"`rank` must be at least 1. Received: rank={self.rank}"
            )
        self._check_bucket_size()
        self._check_choices(
            error_feedback=("quantized", "full", "off"),
            rounding=("stochastic", "nearest"),
        )

    def _is_compressible(self, variable):
        rank = setting_of(self.rank, variable, RANK)
        if len(variable.shape) < 2 or min(_sides(variable)) < rank:
            return False
        if self.exclude_embeddings and "embedding" in variable.name:
            return False
        return math.prod(variable.shape) >= self.min_size

    def _add_compressed_state(self, variable):
        short, long = sorted(_sides(variable))
        rank = setting_of(self.rank, variable, RANK)
        buckets = math.ceil(short * long / self.bucket_size)
        error = {
            "quantized": {
                "codes": ((buckets, self.bucket_size // 2), "uint8"),
                "low": ((buckets, 1), "bfloat16"),
                "high": ((buckets, 1), "bfloat16"),
            },
            "full": {"error": (variable.shape, "float32")},
            "off": {},
        }[self.error_feedback]
        return (
            self._add(
                variable,
                "projector",
                (short, rank),
                initializer=_random_orthonormal,
                places=(0,),
            ),
            self._add(variable, "momentum", (rank, long), places=(1,)),
            self._add(variable, "velocity", (rank, long), places=(1,)),
            *(
                self._add(variable, name, *slot, places=(0,))
                for name, slot in error.items()
            ),
        )

    def _step_compressed(self, gradient, state, index, places=None):
        update, state = ld_adam_step(
            gradient,
            state,
            rho=self.rho,
            rounding=self.rounding,
            seed=index,
            **self._options(),
        )
        return update, *state

    def get_config(self):
        config = {
            name: getattr(self, name)
            for name in (
                "beta_1",
                "beta_2",
                "rho",
                "epsilon",
                "error_feedback",
                "bucket_size",
                "rounding",
                "min_size",
                "exclude_embeddings",
            )
        }
        config["rank"] = self.rank
        if isinstance(self.rank, dict):
            config["rank"] = dict(self.rank)
        return {**super().get_config(), **config}


def _sides(variable):
    return math.prod(variable.shape[:-1]), variable.shape[-1]


def _random_orthonormal(shape, dtype):
    """Return the same orthonormal columns on every backend."""
    normal = np.random.default_rng(0).normal(size=shape)
    return ops.convert_to_tensor(np.linalg.qr(normal)[0], dtype)
