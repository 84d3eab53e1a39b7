"""One table of reversible vision models, and what holds for each."""

import contextlib
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import models
from keras_efficient.layers import MBConv
from keras_efficient.utils import saved_activation_bytes
from tests.compilers import compiled
from tests.gradients import GRAPH
from tests.gradients import MODES
from tests.gradients import fit_mode
from tests.gradients import to_numpy
from tests.marks import first
from tests.marks import once
from tests.models import vision_reference as reference
from tests.twins import batch


def rev_bifpn(extra_silos=0, **arguments):
    arguments = {"input_shape": (16, 16, 3), "classes": 3, **arguments}
    return models.RevBiFPN((48, 7), (5, 6), 8, extra_silos, 1, **arguments)


def rev_col(columns=2, **arguments):
    arguments = {"input_shape": (16, 16, 3), "classes": 3, **arguments}
    return models.RevCol(
        (4, 6), (1, 2), columns, far_feedback=True, **arguments
    )


def reversible_unet(depth=1, rank=3, **arguments):
    arguments = {"input_shape": (8,) * rank + (1,), "classes": 3, **arguments}
    return models.ReversibleUNet(rank, (4, 7), depth, se_ratio=0.5, **arguments)


# Builder, the numbers of blocks of a shallow and a deep one, names of runs.
TABLE = {
    "RevBiFPN": (rev_bifpn, (0, 2), ["pyramid"]),
    "RevCol": (rev_col, (2, 5), ["columns_1"]),
    "ReversibleUNet": (reversible_unet, (1, 3), ["down_0", "bottom_1", "up_0"]),
}
# What drops units and whole blocks.
DROPPED = {
    "RevBiFPN": ("dropout", "drop_rate"),
    "RevCol": ("drop_rate",),
    "ReversibleUNet": (),
}
each_model = pytest.mark.parametrize("name", TABLE)


def images(model):
    return batch(4, *model.input_shape[1:])


def evaluate(fn, x):
    """Return `fn(x)` as arrays."""
    return to_numpy(keras.tree.flatten(compiled(fn)(x)))


def build(name, *arguments, **options):
    keras.utils.set_random_seed(7)
    return TABLE[name][0](*arguments, **options)


FORWARD = {
    **{name: (name, {}) for name in TABLE},
    "ReversibleUNet of images": ("ReversibleUNet", {"rank": 2}),
    "maps of RevBiFPN": ("RevBiFPN", {"include_top": False, "extra_silos": 1}),
    "maps of RevCol": ("RevCol", {"include_top": False}),
    "RevBiFPN as in Keras": ("RevBiFPN", {"layout": "keras"}),
}
NUMPY = {
    "RevBiFPN": reference.rev_bifpn,
    "RevCol": reference.rev_col,
    "ReversibleUNet": reference.reversible_unet,
}


@pytest.mark.parametrize("case", first(*FORWARD, number=len(TABLE)))
def test_forward_equals_a_computation_in_numpy(case):
    name, options = FORWARD[case]
    model = build(name, **options)
    reference.randomize(model)
    x = images(model)
    expected = keras.tree.flatten(NUMPY[name](model, x))
    for a, b in zip(evaluate(model, x), expected, strict=True):
        assert np.ptp(a) > 0.01
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * np.ptp(b))


@each_model
def test_fit_takes_the_steps_of_the_plain_twin(name):
    """One step of SGD at rate 1 is the gradient of each variable."""
    rates = dict.fromkeys(DROPPED[name], 0.3)

    def step(reversible, mode):
        model = build(name, reversible=reversible, **rates)
        loss = "sparse_categorical_crossentropy"
        model.compile(keras.optimizers.SGD(1.0), loss, **fit_mode(mode))
        before = to_numpy(model.weights)
        x = images(model)
        shape = x.shape[: model.output.ndim - 1]
        y = np.arange(np.prod(shape)).reshape(shape) % 3
        keras.utils.set_random_seed(1)
        loss = model.fit(x, y, verbose=0).history["loss"]
        after = to_numpy(model.weights)
        names = [v.path for v in model.weights]
        trainable = [v.trainable for v in model.weights]
        moves = [b - a.astype(b.dtype) for a, b in zip(before, after)]
        return loss, list(zip(names, trainable, moves))

    loss, ours = step(True, GRAPH)
    plain_loss, plain = step(False, MODES[0])
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
    for (path, trainable, a), (_, _, b) in zip(ours, plain, strict=True):
        error = np.linalg.norm(a - b) / (1e-2 + np.linalg.norm(b))
        assert error < 2e-3, (path, error)
    moved = [np.any(move != 0) for _, trainable, move in ours if trainable]
    assert np.mean(moved) > 0.9


@once
@each_model
def test_runs_have_an_inverse(name):
    model = build(name)
    for run in TABLE[name][2]:
        run = model.get_layer(run)
        x = batch(2, *run.input.shape[1:])
        # One stream of several, or a tensor of two halves.
        x = x if name == "ReversibleUNet" else [x]
        again = evaluate(lambda x: run.inverse(run(x)), x)
        for a, b in zip(again, keras.tree.flatten(x), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", first(*TABLE))
def test_saves_loads_and_keeps_mixed_precision(name, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(name)
    finally:
        keras.config.set_dtype_policy("float32")
    run = model.get_layer(TABLE[name][2][0])
    outputs = keras.tree.flatten(run.output)
    assert {x.dtype for x in outputs} == {"float32"}
    assert model.output.dtype == "float32"
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    block = again.get_layer(TABLE[name][2][0]).blocks[0]
    block = block.blocks[0] if name == "RevBiFPN" else block
    inner = block.levels[0] if name == "RevCol" else block.f
    assert inner.compute_dtype == "bfloat16"
    for a, b in zip(again.weights, model.weights, strict=True):
        assert a.name == b.name and a.dtype == b.dtype
        np.testing.assert_array_equal(*to_numpy([a, b]))
    if keras.config.backend() == "torch":  # which compiles nothing
        x = images(model)
        (y,) = evaluate(model, x)
        np.testing.assert_array_equal(evaluate(again, x)[0], y)
        full = build(name, reversible=False)
        model.save_weights(tmp_path / "model.weights.h5")
        full.load_weights(tmp_path / "model.weights.h5")
        assert 0 < np.max(np.abs(evaluate(full, x)[0] - y)) < 0.1

    class Worst(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return -ops.mean(ops.log(y_pred[..., 0] + 1e-3))

    model.compile("sgd", Worst(), **fit_mode(MODES[0]))
    x = images(model)
    assert np.isfinite(model.train_on_batch(x, np.zeros(len(x))))


@once  # on each backend the tests of columns and runs ask
@each_model
def test_bytes_kept_do_not_grow_with_depth(name):
    def kept(depth, reversible):
        shape = (16, 16, 16, 1) if "UNet" in name else (32, 32, 3)
        model = build(name, depth, reversible=reversible, input_shape=shape)
        return saved_activation_bytes(model, images(model))

    few, many = TABLE[name][1]
    growth = kept(many, True) - kept(few, True)
    plain_growth = kept(many, False) - kept(few, False)
    assert plain_growth > 3e5
    assert growth < 0.05 * plain_growth


@contextlib.contextmanager
def without_memory():
    """Variables have shapes and no values."""
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        keras.utils.clear_session()  # or they would get their values later


COUNTS = {
    "RevBiFPNS0": 3_419_196,
    "RevBiFPNS1": 5_112_300,
    "RevBiFPNS2": 10_576_528,
    "RevBiFPNS3": 19_574_184,
    "RevBiFPNS4": 48_687_336,
    "RevBiFPNS5": 81_998_976,
    "RevBiFPNS6": 142_307_972,
}
MILLIONS = {
    "RevColTiny": 30,
    "RevColSmall": 60,
    "RevColBase": 138,
    "RevColLarge": 273,
    "RevColXLarge": 833,
    "RevColHuge": 2157,
}


@once
@pytest.mark.parametrize("name", [*COUNTS, *MILLIONS])
def test_pitfall_19_parameters_of_published_models(name):
    with without_memory():
        model = getattr(models, name)()
    count = sum(math.prod(v.shape) for v in model.trainable_variables)
    if name in COUNTS:
        assert count == COUNTS[name]
    else:
        assert count // 10**6 == MILLIONS[name]
    assert model.output_shape == (None, 1000)
    assert model.input_shape == (None, None, None, 3)


@once
def test_arguments_of_a_published_size_can_be_changed():
    def count(build, **arguments):
        with without_memory():
            return build(**arguments).count_params()

    assert count(models.RevColTiny, columns=8) == count(models.RevColSmall)
    few = count(models.RevBiFPNS2)
    assert few < count(models.RevBiFPNS2, extra_silos=3, name="other")


@once
@each_model
def test_without_the_top_feature_maps_come_out(name):
    with without_memory():
        model = build(name, include_top=False)
        shapes = [y.shape for y in keras.tree.flatten(model.outputs)]
    expected = {
        "RevBiFPN": [(None, 4, 4, 5), (None, 2, 2, 6)],
        "RevCol": [(None, 4, 4, 4), (None, 2, 2, 6)],
        "ReversibleUNet": [(None, 8, 8, 8, 4)],
    }[name]
    assert shapes == expected
    if name != "ReversibleUNet":
        with without_memory():
            model = build(name, include_top=False, pooling="max")
        assert model.output_shape == (None, 6)


@once
@each_model
def test_weights_are_loaded_from_a_path(name, tmp_path):
    model = build(name)
    model.save_weights(tmp_path / "some.weights.h5")
    keras.utils.set_random_seed(8)
    again = TABLE[name][0](weights=tmp_path / "some.weights.h5", name="other")
    assert again.name == "other"
    for a, b in zip(to_numpy(model.weights), to_numpy(again.weights)):
        np.testing.assert_array_equal(a, b)


@once
def test_stochastic_depth_grows_with_depth():
    with without_memory():
        model = build("RevCol", drop_rate=0.2)
    for column in model.get_layer("columns_1").blocks:
        rates = [rate for level in column.levels for rate in level.drop_rates]
        np.testing.assert_allclose(rates, [0.0, 0.1, 0.2])


@pytest.mark.parametrize("classes", first(1000, 1001))
def test_decoders_paint_what_numpy_does(classes):
    model = build(
        "RevCol",
        4,
        intermediate_supervision=True,
        classes=classes,
        input_shape=(None, None, 3),
    )
    x = model.get_layer("columns_1").output[-1]
    painter = keras.Model(x, model.output["image_1"])
    reference.randomize(painter)
    x = batch(2, 3, 4, 6)
    image = painter.predict(x, verbose=0)
    assert image.shape == (2, 24, 32, 3)
    expected = reference.decoder(painter, x)
    np.testing.assert_allclose(image, expected, rtol=2e-3, atol=1e-3)


@once  # other tests of JAX draw by NumPy
def test_first_values_of_a_classifier_are_scaled():
    for scale, expected in ((1.0, 0.02), (0.01, 2e-4)):
        model = build("RevCol", classes=400, head_init_scale=scale)
        (dense,) = (m for m in model.layers if type(m).__name__ == "Dense")
        deviation = np.std(to_numpy([dense.kernel])[0])
        np.testing.assert_allclose(deviation, expected, rtol=0.1)
    model = build("RevBiFPN", classes=400)
    kernel = to_numpy([model.get_layer("logits").kernel])[0]
    bound = len(kernel) ** -0.5
    np.testing.assert_allclose(np.abs(kernel).max(), bound, rtol=0.02)
    np.testing.assert_allclose(np.std(kernel), bound / 3**0.5, rtol=0.05)


@once
def test_intermediate_supervision_adds_heads_and_pictures():
    model = build("RevCol", 4, intermediate_supervision=True)
    x = images(model)
    outputs = {key: y.shape for key, y in model.output.items()}
    classes = {f"class_{k}": (None, 3) for k in (1, 2, 3, 4)}
    pictures = {f"image_{k}": (None, 16, 16, 3) for k in (1, 2, 3)}
    assert outputs == {**classes, **pictures}
    losses = {k: "sparse_categorical_crossentropy" for k in classes}
    logits = keras.losses.BinaryCrossentropy(from_logits=True)
    losses.update(dict.fromkeys(pictures, logits))
    weights = {f"image_{k}": 3 * (1 - (k - 1) / 3) for k in (1, 2, 3)}
    weights.update({f"class_{k}": 0.7 * k / 4 for k in (1, 2, 3)}, class_4=1.0)
    model.compile("adam", losses, loss_weights=weights, **fit_mode(MODES[0]))
    targets = {k: np.arange(4) % 3 for k in classes}
    targets.update(dict.fromkeys(pictures, np.clip(x, 0.01, 0.99)))
    before = to_numpy(model.trainable_variables)
    history = model.fit(x, targets, verbose=0).history
    assert np.isfinite(history["loss"][0])
    after = to_numpy(model.trainable_variables)
    assert np.mean([np.any(a != b) for a, b in zip(before, after)]) > 0.9


@once
def test_channels_first_computes_the_same():
    found = []
    for name in TABLE:
        last = build(name)
        shape = (last.input_shape[-1], *last.input_shape[1:-1])
        keras.config.set_image_data_format("channels_first")
        try:
            first = build(name, input_shape=shape)
        finally:
            keras.config.set_image_data_format("channels_last")
        assert [v.shape for v in first.weights if len(v.shape) > 3] == [
            v.shape for v in last.weights if len(v.shape) > 3
        ]
        reference.randomize(last)
        for a, b in zip(first.weights, last.weights, strict=True):
            a.assign(ops.reshape(b, a.shape))
        x = images(last)
        (y,) = evaluate(first, np.moveaxis(x, -1, 1))
        y = np.moveaxis(y, 1, -1) if y.ndim > 2 else y
        found.append(y)
        np.testing.assert_allclose(y, evaluate(last, x)[0], atol=1e-4)
    assert len(found) == len(TABLE)


@once
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="multiple of 16 and at least 48"):
        models.RevBiFPN((32, 64), (32, 64))
    with pytest.raises(ValueError, match="must be equally many"):
        models.RevBiFPN((48, 64), (32,))
    with pytest.raises(ValueError, match="sizes that 8 divides"):
        rev_bifpn(input_shape=(20, 16, 3))
    with pytest.raises(ValueError, match="must be equally many"):
        models.RevCol((8, 16), (1,))
    with pytest.raises(ValueError, match="number of columns that 4 divides"):
        rev_col(3, intermediate_supervision=True)
    with pytest.raises(ValueError, match="None, 'avg' or 'max'"):
        rev_col(include_top=False, pooling="min")
    with pytest.raises(ValueError, match="`rank` must be 2 or 3"):
        models.ReversibleUNet(rank=1)
    with pytest.raises(ValueError, match="`rank` must be one of"):
        MBConv(4, rank=1)
    with pytest.raises(ValueError, match="`normalization` must be one of"):
        MBConv(4, normalization="layer")
    with pytest.raises(ValueError, match="`layout` must be one of"):
        rev_bifpn(layout="torch")
    with pytest.raises(ValueError, match="an odd `kernel_size`"):
        MBConv(4, 2, padding="symmetric")
