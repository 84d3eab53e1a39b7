"""Networks that are one run, sizes that change included."""

import math

import keras
import numpy as np
import pytest

from keras_efficient import models
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import GRAPH
from tests.gradients import gradients
from tests.gradients import to_numpy
from tests.marks import once
from tests.models import vision_reference as reference
from tests.twins import batch
from tests.twins import relative_errors


def iunet(reversible=True, depth=1, shape=(7, 9, 3), rank=2, **arguments):
    keras.utils.set_random_seed(7)
    arguments = {"input_shape": shape, "classes": 3, **arguments}
    depths = (1, depth, 1)[: 3 if rank < 3 else 2]
    return models.InvertibleUNet(
        rank, 4, depths, reversible=reversible, **arguments
    )


def resnet(reversible=True, depth=1, shape=(8, 8, 3), **arguments):
    keras.utils.set_random_seed(7)
    arguments = {"input_shape": shape, "classes": 3, **arguments}
    return models.ReversibleResNet(
        (8, 12),
        (1, 1 + depth),
        stem_filters=8,
        reversible=reversible,
        **arguments,
    )


CASES = {
    "iUNet of images of odd sizes": (iunet, {}),
    "iUNet of signals": (iunet, {"rank": 1, "shape": (9, 2)}),
    "iUNet of volumes": (
        iunet,
        {"rank": 3, "shape": (3, 4, 6, 1), "skip_fraction": 0.0},
    ),
    "RevNet": (resnet, {}),
    "RevNet with bottlenecks": (
        resnet,
        {"bottleneck": True, "stem": "large", "shape": (16, 16, 3)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_plain_twin(case):
    build, arguments = CASES[case]
    model, plain = (build(r, **arguments) for r in (True, False))
    x = batch(4, *model.input_shape[1:])
    found, expected = (gradients(m, [x], GRAPH) for m in (model, plain))
    for ours, theirs in zip(found, expected):
        assert max(relative_errors(ours, theirs)) < 2e-4
    assert np.mean([np.any(d != 0) for d in expected[2]]) > 0.9


@pytest.mark.parametrize("skip_fraction", [0.0, 0.5, 0.75])
def test_an_iunet_without_couplings_is_the_identity(skip_fraction):
    """Splits, joins and resampling are undone on the way up."""
    model = iunet(
        shape=(12, 8, 4), include_top=False, skip_fraction=skip_fraction
    )
    run = model.get_layer("levels")
    x = batch(2, 12, 8, 4)
    y = run([x])
    np.testing.assert_allclose(*to_numpy([run.inverse(y)[0]]), x, atol=1e-4)
    assert np.max(np.abs(to_numpy(y)[0] - x)) > 0.1
    for v in run.weights:
        if len(v.shape) == 4:  # of convolutions
            v.assign(np.zeros(v.shape))
    np.testing.assert_allclose(model.predict(x, verbose=0), x, atol=1e-5)


def test_odd_sizes_are_padded_and_cropped():
    model = iunet(shape=(None, None, 3))
    padded = np.pad(batch(2, 7, 9, 3), [(0, 0), (0, 1), (0, 3), (0, 0)])
    y = model.predict(padded[:, :7, :9], verbose=0)
    assert y.shape == (2, 7, 9, 3)
    # The stem sees zeros behind the edge either way, but not those of others.
    run = keras.Model(
        model.get_layer("pad").output, model.get_layer("crop").input[0]
    )
    x = batch(1, 8, 12, 4)
    x[:, 7:], x[:, :, 9:] = 0, 0
    pad = model.get_layer("pad")
    np.testing.assert_array_equal(*to_numpy([pad(x[:, :7, :9])]), x)
    assert run.predict(x, verbose=0).shape == (1, 8, 12, 4)


def revnet(model, x):
    def function(stack, x):
        for layer in stack.layers:
            kind = type(layer).__name__
            if kind == "Activation":
                x = np.maximum(x, 0)
            else:
                x = (reference.norm if "Norm" in kind else reference.conv)(
                    layer, x
                )
        return x

    def shortcut(layer, x):
        s = layer.strides
        b, h, w, c = x.shape
        x = x.reshape(b, h // s, s, w // s, s, c).mean((2, 4))
        more = (layer.filters - c) // 2
        return np.pad(x, [(0, 0)] * 3 + [(more, more)])

    stem = [m for m in model.layers if type(m).__name__ == "Conv2D"]
    norms = [m for m in model.layers if "Normalization" in type(m).__name__]
    x = np.maximum(reference.norm(norms[0], reference.conv(stem[0], x)), 0)
    x1, x2 = np.split(x, 2, -1)
    for block in model.get_layer("stages").blocks:
        a, b = x1, x2
        if hasattr(block, "shortcuts"):
            a, b = (shortcut(s, x) for s, x in zip(block.shortcuts, (a, b)))
        x1 = a + function(block.f, x2)
        x2 = b + function(block.g, x1)
    x = np.concatenate([x1, x2], -1)
    x = np.maximum(reference.norm(model.get_layer("norm"), x), 0)
    logits = reference.dense(model.get_layer("logits"), reference.mean(x))
    return reference.softmax(logits)


def test_a_revnet_computes_what_numpy_does():
    model = resnet()
    reference.randomize(model)
    for v in model.weights:
        if v.name == "kernel":
            v.assign(v * 0.1)
    x = batch(2, 8, 8, 3)
    y = model.predict(x, verbose=0)
    np.testing.assert_allclose(y, revnet(model, x), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="has no inverse"):
        model.get_layer("stages").inverse(batch(1, 4, 4, 12))


@once
@pytest.mark.parametrize("build", [iunet, resnet])
def test_bytes_kept_do_not_grow_with_depth(build):
    def kept(reversible, depth):
        model = build(reversible, depth, (32, 32, 3))
        return saved_activation_bytes(model, batch(4, 32, 32, 3))

    plain = kept(False, 4) - kept(False, 1)
    assert plain > 3e5
    assert kept(True, 4) - kept(True, 1) < 0.05 * plain


@once
@pytest.mark.parametrize(
    "name, millions",
    [
        ("ReversibleResNet38", "0.46"),
        ("ReversibleResNet110", "1.73"),
        ("ReversibleResNet164", "1.75"),
        ("ReversibleResNet56", "27.55"),
        ("ReversibleResNet104", "45.43"),
    ],
)
def test_parameters_of_published_models(name, millions):
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = getattr(models, name)()
    finally:
        keras.utils.clear_session()
    count = sum(math.prod(v.shape) for v in model.trainable_variables)
    assert f"{count / 1e6:.2f}" == millions
    assert model.output_shape == (None, 10 if count < 2e6 else 1000)


def test_saving(tmp_path):
    for build in (iunet, resnet):
        model = build()
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        x = batch(2, *model.input_shape[1:])
        np.testing.assert_allclose(
            again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
        )


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`rank` must be 1, 2 or 3"):
        models.InvertibleUNet(4)
    with pytest.raises(ValueError, match="must be in"):
        iunet(skip_fraction=1.0)
    with pytest.raises(ValueError, match="the channels of the finest level"):
        iunet(include_top=False)
    with pytest.raises(ValueError, match="must be even numbers"):
        models.ReversibleResNet((8, 7), (1, 1))
    with pytest.raises(ValueError, match="`stem` must be"):
        resnet(stem="none")
