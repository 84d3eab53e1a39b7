"""Orthogonal matrices from free parameters."""

import keras
from keras import ops

PARAMETRIZATIONS = ("cayley", "householder")


def cayley(weight):
    """Return `U = (I + A)^-1 (I - A)`, orthogonal since `A = W - W^T`.

    Args:
        weight: Tensor W of shape `(..., n, n)`; zeros give `U = I`.
    """
    # No backend solves in half precision.
    dtype = "float64" if weight.dtype == "float64" else "float32"
    weight = ops.cast(weight, dtype)
    a = weight - ops.swapaxes(weight, -1, -2)
    eye = ops.eye(weight.shape[-1], dtype=dtype)
    return ops.solve(eye + a, ops.broadcast_to(eye - a, a.shape))


def householder(vectors):
    """Return `U = H_1 H_2 ... H_n`, `H_i = I - 2 v_i v_i^T / (v_i^T v_i)`.

    Args:
        vectors: Tensor of the v_i, of shape `(..., n, n)`; pairs of equal
            vectors undo each other.
    """
    dtype = "float64" if vectors.dtype == "float64" else "float32"
    vectors = ops.cast(vectors, dtype)
    n = vectors.shape[-2]
    u = ops.eye(vectors.shape[-1], dtype=dtype)
    u = ops.broadcast_to(u, (*vectors.shape[:-2], *u.shape))
    for i in range(n):
        v = vectors[..., i, :]
        v = v * ops.rsqrt(ops.sum(v * v, -1, keepdims=True))
        u_v = ops.einsum("...ij,...j->...i", u, v)
        u = u - 2 * u_v[..., :, None] * v[..., None, :]
    return u


def orthogonal(weight, parametrization):
    """Return the matrices that `weight` stands for."""
    if parametrization == "householder":
        return householder(weight)
    return cayley(weight)


def weight_shape(n, parametrization):
    """Return the shape of the weight of matrices of size n."""
    return (n + n % 2, n) if parametrization == "householder" else (n, n)


def first_weight(parametrization):
    """Return the initializer from which U = I."""
    return Mirrors() if parametrization == "householder" else "zeros"


@keras.saving.register_keras_serializable(package="keras_efficient")
class Mirrors(keras.initializers.Initializer):
    """Draw vectors in equal pairs, for `householder`."""

    def __init__(self, seed=None):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        *many, n, size = shape
        normal = keras.initializers.RandomNormal(0, 1, self.seed)
        vectors = normal((*many, n // 2, size), dtype)
        # (`ops.repeat` of one vector is a view, which PyTorch cannot write.)
        return ops.reshape(ops.stack([vectors, vectors], axis=-2), shape)

    def get_config(self):
        return {"seed": self.seed}
