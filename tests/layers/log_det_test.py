"""Logarithms of determinants, against the Jacobian by automatic derivatives."""

import keras
import numpy as np
import pytest
from keras import layers as keras_layers
from keras import ops

from keras_efficient import layers
from keras_efficient.layers.reversible.log_det import WithLogDet
from keras_efficient.utils import saved_activation_bytes
from tests.compilers import compiled
from tests.gradients import MODES
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.marks import once
from tests.twins import batch
from tests.twins import relative_errors

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* maps")


def dense(n):
    return keras_layers.Dense(n, "tanh", kernel_initializer="random_normal")


def affine(n=3, **arguments):
    return layers.AffineCoupling(dense(2 * n), dense(2 * n), **arguments)


def invertible_dense(units=6):
    return layers.InvertibleDense(units, kernel_initializer="glorot_normal")


def conv(filters, size, strides):
    return layers.InvertibleConv2D(
        filters, size, strides, kernel_initializer="glorot_normal"
    )


def image_conv(n):
    return keras_layers.Conv2D(n, 3, padding="same", activation="tanh")


def sequence():
    return layers.ReversibleSequence(
        [
            affine(),
            layers.OrthogonalMixing(kernel_initializer="random_normal"),
            layers.InvertibleLeakyReLU(learned=True),
            invertible_dense(),
            layers.AdditiveCoupling(dense(3)),
            layers.MomentumCoupling(dense(3), 0.7),
            layers.InvertibleResidual(
                layers.InvertibleDense(6, False, "random_normal")
            ),
        ]
    )


def of_images(reversible=True, depth=1):
    return layers.ReversibleSequence(
        [
            conv(2, 1, 1),
            layers.InvertibleDownsampling2D(2, start="haar"),
            *[
                layers.AffineCoupling(image_conv(8), image_conv(8))
                for _ in range(depth)
            ],
            conv(32, 2, 2),
            layers.InvertibleLeakyReLU(3.0, 0.25),
            layers.InvertibleUpsampling2D(2),
        ],
        reversible,
    )


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
class Level(keras_layers.Layer):
    def build(self, shapes):
        self.dense = dense(2)
        self.dense.build((None, sum(shape[-1] for shape in shapes)))

    def call(self, inputs):
        return self.dense(ops.concatenate(inputs, -1))


VECTORS = {
    "additive": lambda: layers.AdditiveCoupling(dense(3), dense(3)),
    "affine": affine,
    "affine of odd channels": lambda: layers.AffineCoupling(dense(4), dense(6)),
    "momentum": lambda: layers.MomentumCoupling(dense(3), 0.7),
    "mixing": lambda: layers.OrthogonalMixing("householder"),
    "dense": invertible_dense,
    "activation": lambda: layers.InvertibleLeakyReLU(3.0, 0.25),
    "sequence": sequence,
    "sequential": lambda: layers.InvertibleSequential(
        [invertible_dense(), affine(), layers.InvertibleLeakyReLU()]
    ),
}
IMAGES = {
    "resampling": lambda: layers.InvertibleDownsampling2D(2, "orthogonal"),
    "convolution": lambda: conv(2, 1, 1),
    "convolution with strides": lambda: conv(8, 2, 2),
    "sequence": of_images,
}
CASES = {
    **{("vectors", k): (make, (6,)) for k, make in VECTORS.items()},
    **{("images", k): (make, (4, 4, 2)) for k, make in IMAGES.items()},
}
CASES["vectors", "affine of odd channels"] = (
    VECTORS["affine of odd channels"],
    (5,),
)


def with_log_det(layer, x):
    if hasattr(layer, "log_det"):
        return layer(x), layer.log_det(x)
    return layer(x, return_log_det=True)


def jacobians(fn, x):
    """The matrices of the derivatives of `fn`, one for each example."""
    n = x[0].size

    def total(x):
        """Sums over the examples, each of which has a derivative of its own."""
        return ops.sum(ops.reshape(fn(x), (-1, n)), 0)

    backend = keras.config.backend()
    shape, x = x.shape, ops.convert_to_tensor(x)
    if backend == "jax":
        import jax

        found = jax.jit(jax.jacrev(total))(x)
    elif backend == "torch":
        import torch

        found = torch.autograd.functional.jacobian(total, x)
    else:
        import tensorflow as tf

        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = total(x)
        found = tape.jacobian(y, x, experimental_use_pfor=False)
    found = to_numpy([found])[0].reshape(n, shape[0], n)
    return np.moveaxis(found, 1, 0).astype("float64")


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_log_det_is_that_of_the_jacobian(case):
    make, shape = CASES[case]
    keras.utils.set_random_seed(3)
    layer, x = make(), batch(3, *shape)
    layer.build(x.shape)
    has_inverse = not hasattr(layer, "log_det") and all(
        block.bijective for block in layer.couplings()
    )

    @compiled
    def run(x):
        y, log_det = with_log_det(layer, x)
        if not has_inverse:
            return layer(x), y, log_det
        return layer(x), y, log_det, layer.inverse(y, return_log_det=True)[1]

    plain, y, found, *back = to_numpy(run(ops.convert_to_tensor(x)))
    np.testing.assert_allclose(plain, y, atol=1e-6)
    assert found.shape == (3,)
    expected = np.linalg.slogdet(jacobians(layer, x))[1]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    if has_inverse:
        np.testing.assert_allclose(*back, -found, atol=2e-4)


def test_log_det_of_several_streams():
    """Of a column and of parallel blocks, with what they see beside it."""
    column = layers.ReversibleColumn([Level(), Level()], scale=0.7)
    x = [batch(1, 2), batch(1, 2), batch(1, 2)[:, ::-1].copy()]
    column(x)
    column.scales[0].assign([-0.4, 1e-5])  # the latter counts as 1e-3
    expected = np.log([0.4, 1e-3, 0.7, 0.7]).sum()
    _, log_det = column(x, return_log_det=True)
    np.testing.assert_allclose(*to_numpy([log_det]), [expected], rtol=1e-5)
    parallel = layers.ReversibleParallel(
        [affine(), None, layers.InvertibleLeakyReLU()]
    )
    x = [batch(2, 6), batch(2, 3), batch(2, 4)]
    _, log_det = parallel(x, return_log_det=True)
    first, _, last = parallel.blocks
    parts = first(x[0], return_log_det=True), last.layer.log_det(x[2])
    expected = np.add(*to_numpy([parts[0][1], parts[1]]))
    np.testing.assert_allclose(*to_numpy([log_det]), expected, atol=1e-5)


def test_the_sum_is_undone():
    layer, x = affine(), batch(3, 6)
    layer.build(x.shape)
    streams = [ops.convert_to_tensor(part) for part in np.split(x, 2, 1)]
    streams.append(ops.convert_to_tensor([1.0, 2.0, 3.0]))
    block = WithLogDet(layer)

    def evaluate(function, x, *_):
        return function(x)

    outputs = block.couple(streams, evaluate)
    assert ops.max(ops.abs(outputs[-1] - streams[-1])) > 0.01
    for found, expected in zip(block.uncouple(outputs, evaluate), streams):
        np.testing.assert_allclose(*to_numpy([found, expected]), atol=1e-5)


def model(reversible=True, depth=1):
    keras.utils.set_random_seed(7)
    inputs = keras.Input((4, 4, 2))
    run = of_images(reversible, depth)
    y, log_det = run(inputs, return_log_det=True)
    assert y.shape == (None, 2, 2, 8) and log_det.shape == (None,)
    return keras.Model(inputs, [y, log_det])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_equal_those_of_the_plain_twin(mode):
    x = batch(3, 4, 4, 2)
    results = [gradients(model(r), [x], mode) for r in (True, False)]
    for ours, theirs in zip(*results):
        assert max(relative_errors(ours, theirs)) < 1e-4
    assert np.mean([np.any(d != 0) for d in results[1][2]]) > 0.9


@once
def test_bytes_kept_do_not_grow_with_depth():
    x = batch(32, 4, 4, 2)
    kept = {
        (r, d): saved_activation_bytes(model(r, d), x)
        for r in (True, False)
        for d in (1, 4)
    }
    plain = kept[False, 4] - kept[False, 1]
    assert plain > 5e4
    assert kept[True, 4] - kept[True, 1] < 0.05 * plain


def test_integers_and_inverses():
    blocks = [layers.AdditiveCoupling(dense(3)) for _ in range(2)]
    run = layers.ReversibleSequence(blocks, exact=True)
    y, log_det = run(batch(2, 6), return_log_det=True)
    np.testing.assert_array_equal(*to_numpy([log_det]), [0, 0])
    run = layers.ReversibleSequence([affine(), affine()], False)
    x = batch(2, 6)
    y, log_det = run([x[:, :3], x[:, 3:]], return_log_det=True)
    assert isinstance(y, list)
    again, back = run.inverse(y, return_log_det=True)
    np.testing.assert_allclose(*to_numpy([back, -log_det]), atol=1e-5)
    np.testing.assert_allclose(*to_numpy([again[0]]), x[:, :3], atol=1e-5)


class Unknown(layers.ReversibleLayer):
    def couple(self, streams, evaluate):
        return streams[0] * 2, streams[1]

    def uncouple(self, streams, evaluate):
        return streams[0] / 2, streams[1]


def test_a_determinant_that_is_not_known_is_refused():
    x = batch(2, 6)
    with pytest.raises(ValueError, match="define `couple_with_log_det`"):
        Unknown()(x, return_log_det=True)
    silo = layers.RevSilo([[dense(4)]], [[dense(4)]], new_scale=True)
    with pytest.raises(ValueError, match="which is no square matrix"):
        silo([batch(2, 4)], return_log_det=True)
    narrow = invertible_dense(4)
    narrow.build((None, 6))
    with pytest.raises(ValueError, match="Use as many units as inputs"):
        narrow.log_det(x)
    overlapping = layers.InvertibleConv2D(2, 3, padding="same")
    overlapping.build((None, 4, 4, 2))
    with pytest.raises(ValueError, match="windows do not overlap"):
        overlapping.log_det(batch(1, 4, 4, 2))
    padded = layers.InvertibleDownsampling2D(padding="same")
    with pytest.raises(ValueError, match="appends zeros"):
        padded.log_det(batch(1, 4, 4, 2))
