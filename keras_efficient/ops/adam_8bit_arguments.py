import dataclasses
import functools
import math
from collections import namedtuple
from typing import Any
from typing import ClassVar

import numpy as np

from keras_efficient.ops.adam_step import adam_biases
from keras_efficient.ops.dispatch import FLOATS
from keras_efficient.ops.quantize_8bit import is_along_last
from keras_efficient.ops.quantize_8bit import scale_shape

# shape and dtype; for that of the scales see quantize_8bit
Adam8bitState = namedtuple(
    "Adam8bitState",
    (
        "momentum_codes",  # the shape of the tensor, int8
        "momentum_scale",  # (..., ceil(last / 32)), float16
        "velocity_codes",  # the shape of the tensor, uint8
        "velocity_scale",  # (..., ceil(last / 32)), float16
    ),
)

# How many rows, columns and groups of 32 a parameter has as a matrix.
Sizes = namedtuple("Sizes", ("rows", "columns", "groups"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam8bitArguments:
    """What kernels of `adam_8bit_step` get for all tensors. See there.

    For each tensor they do the same as the portable form

    ```
    u, state = adam_8bit_step(gradient, state, step, seed=seed)
    parameter = parameter - learning_rate * u
    ```

    in one pass over the memory, without temporaries. Codes are the same bits,
    as far as the framework computes each operation with one rounding. The root
    of PyTorch and the graphs of TensorFlow are off by a last digit here and
    there: one code in a million differs by 1.
    """

    ALGORITHM: ClassVar = "adam_8bit"
    DTYPES: ClassVar = {
        "parameter": FLOATS,
        "momentum_codes": ("int8",),
        "momentum_scale": ("float16",),
        "velocity_codes": ("uint8",),
        "velocity_scale": ("float16",),
        "gradient": FLOATS,
    }

    learning_rate: Any  # float or float32 scalar tensor
    step: Any  # integer or int32 scalar tensor
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    weight_rounding: str = "nearest"  # of bfloat16 without corrections

    @functools.cached_property
    def biases(self):
        """Scalar tensors, 1 - beta^step for both moments."""
        return adam_biases(self.step, self.beta_1, self.beta_2)

    @functools.cached_property
    def constants(self):
        """beta_1, 1 - beta_1, beta_2, 1 - beta_2 and epsilon, in float32."""
        b_1, b_2 = self.beta_1, self.beta_2
        return np.array([b_1, 1 - b_1, b_2, 1 - b_2, self.epsilon], "float32")

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def shapes(shape):
        """Return the shapes of a row's tensors."""
        scale = scale_shape(shape)
        return shape, shape, scale, shape, scale, shape

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def sizes(shape):
        """Return the `Sizes` of a parameter: rows hold whole groups."""
        rows = math.prod(shape[:-1]) if is_along_last(shape) else 1
        groups = math.prod(scale_shape(shape))
        return Sizes(rows, math.prod(shape) // rows, groups)
