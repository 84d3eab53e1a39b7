import dataclasses
import functools
import math
from collections import namedtuple
from typing import Any
from typing import ClassVar

import numpy as np

from keras_efficient.ops.adam_step import adam_biases
from keras_efficient.ops.dispatch import FLOATS

# shape and dtype, for a tensor of d elements, window m, k entries a block of
# size B, buckets of size Q; the axes of blocks and buckets may be several, as
# in `state_shapes`
MicroAdamState = namedtuple(
    "MicroAdamState",
    (
        "indices",  # (m, ceil(d / B), k), uint8 or int16
        "values",  # (m, ceil(d / B), k), bfloat16 or float32
        "written",  # (m,), int32: the step that wrote the row, 0 for none
        "codes",  # (ceil(d / Q), Q / 2), uint8
        "low",  # (ceil(d / Q), 1), bfloat16
        "high",  # (ceil(d / Q), 1), bfloat16
        "velocity",  # (ceil(d / B), 1), float32
    ),
)


def block_axes(shape, block_size):
    """Return the shape of the blocks of a flattened tensor, by its axes.

    Blocks keep their order and what is in them. But they stand in the leading
    axes of the tensor as far as whole blocks allow, so that they can be divided
    as it is: of (1024, 1024), (1024, 4) of 256 entries; of (3, 3, 64, 64),
    (3, 3, 16) of four rows each.

    Returns:
        Tuple, or `None` where blocks straddle rows or the last is not full.
    """
    trailing = 1
    for axis in reversed(range(len(shape))):
        if not trailing or block_size % trailing:
            return None
        trailing *= shape[axis]
        if trailing and trailing % block_size == 0:
            return (*shape[:axis], trailing // block_size)
    return None


def state_shapes(shape, *, window, k, block_size, bucket_size):
    """Return a `MicroAdamState` of shapes, for a tensor of some shape."""
    size = math.prod(shape)
    buckets = (math.ceil(size / bucket_size),)
    blocks = block_axes(shape, block_size)
    if blocks and block_size % bucket_size == 0:
        buckets = *blocks[:-1], blocks[-1] * (block_size // bucket_size)
    else:
        blocks = (math.ceil(size / block_size),)
    return MicroAdamState(
        indices=(window, *blocks, k),
        values=(window, *blocks, k),
        written=(window,),
        codes=(*buckets, bucket_size // 2),
        low=(*buckets, 1),
        high=(*buckets, 1),
        velocity=(*blocks, 1),
    )


def flat_shapes(shapes):
    """Return the shapes of a `MicroAdamState` with one axis of blocks."""
    return MicroAdamState(*map(_flat, MicroAdamState._fields, shapes))


def _flat(name, shape):
    first = 1 if name in ("indices", "values") else 0
    if name == "written":
        return shape
    return *shape[:first], math.prod(shape[first:-1]), shape[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroAdamArguments:
    """What kernels of `micro_adam_step` get for all tensors. See there.

    For each tensor they do the same as the portable form

    ```
    u, state = micro_adam_step(gradient, state, step, seed=seed)
    parameter = parameter - learning_rate * u
    ```

    in one pass over the memory, without temporaries. Of entries of equal
    magnitude the first one is chosen, as XLA does; other frameworks take any in
    the portable form.
    """

    ALGORITHM: ClassVar = "micro_adam"
    DTYPES: ClassVar = {
        "parameter": FLOATS,
        "indices": ("uint8", "int16"),
        "values": FLOATS,
        "written": ("int32",),
        "codes": ("uint8",),
        "low": ("bfloat16",),
        "high": ("bfloat16",),
        "velocity": ("float32",),
        "gradient": FLOATS,
    }

    learning_rate: Any  # float or float32 scalar tensor
    step: Any  # integer or int32 scalar tensor
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    window: int = 10  # how many steps it holds
    k: int = 3  # how many entries of each block it takes a step
    block_size: int = 256
    bucket_size: int = 64
    alpha: float = 0.4
    rounding: str = "stochastic"
    bias_correction: str = "window"
    weight_rounding: str = "nearest"  # of bfloat16 without corrections

    @functools.cached_property
    def biases(self):
        """Scalar tensors, 1 - beta^step for both moments."""
        return adam_biases(self.step, self.beta_1, self.beta_2)

    @functools.cached_property
    def constants(self):
        """beta_1, 1 - beta_1, beta_2, 1 - beta_2, epsilon, alpha, 1 - alpha."""
        b_1, b_2, alpha = self.beta_1, self.beta_2, self.alpha
        betas = b_1, 1 - b_1, b_2, 1 - b_2
        return np.array([*betas, self.epsilon, alpha, 1 - alpha], "float32")

    @property
    def is_stochastic(self):
        return self.rounding == "stochastic"

    @property
    def is_window(self):
        return self.bias_correction == "window"

    def shapes(self, shape):
        """Return the shapes of a row's tensors, `None` if it is empty."""
        return _shapes(
            shape,
            window=self.window,
            k=self.k,
            block_size=self.block_size,
            bucket_size=self.bucket_size,
        )


@functools.lru_cache(maxsize=4096)
def _shapes(shape, **layout):
    if not math.prod(shape):
        return None
    return shape, *state_shapes(shape, **layout), shape
