import math

import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers


@keras.saving.register_keras_serializable(package="keras_efficient")
class CompactRandomFeatures(keras.layers.Layer):
    """Map vectors so that inner products become those of a polynomial kernel.

    A linear layer behind it does what a kernel machine would do on all pairs
    of examples; nothing in it is trained, and it is no kernel machine itself.

    ```
    <f(x), f(y)> = (<x, y> + bias)^degree       in the mean over seeds
    Z_i = sqrt((1 + bias)^degree / D) prod_{j <= N_i} <w_ij, x>
    f(x) = G Z,    D = expansion * units
    ```

    with signs w, N_i drawn from 0 to `degree` with the probabilities
    `C(degree, n) bias^(degree - n) / (1 + bias)^degree`, and a random
    projection G, which makes features as good as `expansion` times as many
    that were not projected, or nearly. Weights follow from `seed`: files hold
    none of them.

    Args:
        units: Integer, the number of features.
        degree: Integer, of the polynomial. Defaults to `7`.
        bias: Float, 0 or more, of the polynomial. Defaults to `1.0`.
        expansion: Integer. Defaults to `8`. With `1` and without a
            projection these are random Maclaurin features.
        structured: Boolean. Whether G is a part of a Hadamard matrix with
            random signs, which takes `D log D` operations, instead of `D
            units` random numbers. Defaults to `True`.
        normalize: Boolean. Whether x is divided by its norm, without which
            products may explode. Defaults to `True`.
        seed: Integer. Defaults to `0`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., width)`.

    Returns:
        Tensor of shape `(batch, ..., units)`.

    Raises:
        ValueError: an argument is outside its range.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((64,)),
        keras_efficient.layers.CompactRandomFeatures(300),
        keras.layers.Dense(10),
    ])
    ```

    Deviation: the paper draws N from a geometric distribution, which serves
    all kernels; that of the polynomial's own terms has less variance.

    Reference:
        - [Hamid et al., 2014](https://arxiv.org/abs/1312.4626)
    """

    def __init__(
        self,
        units,
        degree=7,
        bias=1.0,
        expansion=8,
        structured=True,
        normalize=True,
        seed=0,
        **kwargs,
    ):
        check_integers(1, units=units, degree=degree, expansion=expansion)
        check_integers(0, seed=seed)
        check_numbers("[0, inf)", bias=bias)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.units = units
        self.degree = degree
        self.bias = bias
        self.expansion = expansion
        self.structured = structured
        self.normalize = normalize
        self.seed = seed

    def build(self, input_shape):
        width, count = input_shape[-1], self.units * self.expansion
        rng = np.random.default_rng(self.seed)
        n = np.arange(self.degree + 1)
        terms = [
            math.comb(self.degree, k) * self.bias ** (self.degree - k)
            for k in n
        ]
        self.total = sum(terms)
        factors = rng.choice(n, count, p=np.array(terms) / self.total)
        # The features with most factors first.
        factors = np.sort(factors)[::-1]
        self.signs = [
            rng.choice(np.array([-1, 1], "int8"), (width, np.sum(factors > j)))
            for j in range(factors[0])
        ]
        self.constant_features = int(np.sum(factors == 0))
        if self.expansion == 1:
            return
        if self.structured:
            self.size = 2 ** math.ceil(math.log2(count))
            self.flips = rng.choice(np.array([-1, 1], "int8"), self.size)
            self.rows = np.sort(rng.permutation(self.size)[: self.units])
        else:
            self.gaussian = rng.normal(size=(count, self.units))

    def call(self, inputs):
        wide = keras.backend.result_type(inputs.dtype, "float32")
        x = ops.cast(inputs, wide)
        if self.normalize:
            norm = ops.sqrt(ops.sum(ops.square(x), -1, keepdims=True))
            x = x / ops.maximum(norm, 1e-12)
        z = self._products(x)
        count = self.units * self.expansion
        z = z * math.sqrt(self.total / count)
        if self.expansion > 1:
            z = self._projected(z, count)
        return ops.cast(z, inputs.dtype)

    def _products(self, x):
        """`prod_{j <= N_i} <w_ij, x>`, a matrix product for each j."""
        z = None
        for signs in self.signs:
            y = ops.matmul(x, ops.cast(signs, x.dtype))
            if z is not None:
                have = y.shape[-1]
                y = ops.concatenate([y * z[..., :have], z[..., have:]], -1)
            z = y
        ones = ops.ones_like(x[..., :1])
        ones = ops.repeat(ones, self.constant_features, axis=-1)
        return ones if z is None else ops.concatenate([z, ones], -1)

    def _projected(self, z, count):
        if not self.structured:
            matrix = ops.convert_to_tensor(self.gaussian, z.dtype)
            return ops.matmul(z, matrix) / math.sqrt(self.units)
        shape = ops.shape(z)[:-1]
        pad = [[0, 0]] * len(shape) + [[0, self.size - count]]
        z = ops.pad(z, pad) * ops.cast(self.flips, z.dtype)
        step = 1
        while step < self.size:  # the fast Hadamard transform
            z = ops.reshape(z, (*shape, -1, 2, step))
            a, b = z[..., 0, :], z[..., 1, :]
            z = ops.stack([a + b, a - b], axis=-2)
            step *= 2
        z = ops.reshape(z, (*shape, self.size))
        # Each row has the norm of a random one.
        return ops.take(z, self.rows, axis=-1) / math.sqrt(self.units)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "degree": self.degree,
            "bias": self.bias,
            "expansion": self.expansion,
            "structured": self.structured,
            "normalize": self.normalize,
            "seed": self.seed,
        }
