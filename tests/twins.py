"""Models with a reversible run, and their plain twins."""

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import AffineCoupling
from keras_efficient.layers import MomentumCoupling
from keras_efficient.layers import ReversibleLayer
from keras_efficient.layers import ReversibleSequence


class ExactDense(layers.Layer):
    """Dense and gelu in float64, where Keras' own matmul on JAX and PyTorch
    is float32, behind whose rounding an error of the engine could hide."""

    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units, 1))

    def call(self, x):
        y = ops.sum(ops.transpose(self.kernel) * x[:, None, :], axis=-1)
        return keras.activations.gelu(y)


class ExactNorm(layers.Layer):
    """A BatchNormalization in float64, for the same reason."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), trainable=False)

    def call(self, x, training=False):
        mean = ops.sum(x, axis=0) / 16  # `ops.mean` rounds to float32 on JAX
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * mean)
        return (x - mean) / (1 + ops.sum(ops.abs(x - mean), axis=0))


def noise(x):
    """Drawn without a seed."""
    return x * (1 + keras.random.normal(ops.shape(x)))


def function(seed=None, dense=layers.Dense, norm=layers.BatchNormalization):
    """A sub-layer with everything that a replay can get wrong."""
    last = dense(4)
    last.activity_regularizer = keras.regularizers.L2(1.0)
    return keras.Sequential(
        [
            dense(8),
            norm(),
            layers.Activation("gelu"),
            layers.Dropout(0.4, seed=seed),
            layers.GaussianNoise(0.1),
            last,
        ]
    )


def couplings(dense=layers.Dense, norm=layers.BatchNormalization):
    shared = function(None, dense, norm)
    return [
        AdditiveCoupling(function(3, dense, norm), shared),
        AdditiveCoupling(layers.Dropout(0.5)),
        AdditiveCoupling(shared, norm()),
    ]


def exact_couplings():
    return couplings(ExactDense, ExactNorm)


def twins(blocks=couplings, dense=layers.Dense, **arguments):
    """A model and its plain twin, with equal values in their variables."""
    models = []
    for reversible in (True, False):
        keras.utils.set_random_seed(7)
        inputs = keras.Input((8,))
        x = ReversibleSequence(blocks(), reversible, **arguments)(
            dense(8)(inputs)
        )
        models.append(keras.Model(inputs, dense(3)(x)))
    return models


def batch(*shape, dtype="float32"):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Rotation(ReversibleLayer):
    """A user's coupling, with a weight of its own: y = (x2, f(x2) - a x1)."""

    def __init__(self, f, **kwargs):
        super().__init__(**kwargs)
        self.f = f

    def build(self, inputs_shape, context_shape=None):
        width = self.stream_shapes(inputs_shape)[0][-1]
        self.a = self.add_weight(shape=(width,), initializer="ones")
        super().build(inputs_shape, context_shape)

    def couple(self, streams, evaluate):
        x1, x2 = streams
        return x2, evaluate(self.f, x2) - self.a * x1

    def uncouple(self, streams, evaluate):
        y1, y2 = streams
        return (evaluate(self.f, y1) - y2) / self.a, y1


class Derived:
    """Takes the gradient of a coupling from its `couple` and `uncouple`."""

    pull_back = ReversibleLayer.pull_back


class DerivedAdditive(Derived, AdditiveCoupling):
    pass


class DerivedAffine(Derived, AffineCoupling):
    pass


class DerivedMomentum(Derived, MomentumCoupling):
    pass


def relative_errors(ours, theirs):
    """Error of each array in the 2-norm, relative to one plus its size."""
    return [
        np.linalg.norm(a - b) / (1 + np.linalg.norm(b))
        for a, b in zip(ours, theirs, strict=True)
    ]
