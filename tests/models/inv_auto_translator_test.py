import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient import backend
from keras_efficient import layers
from keras_efficient import models
from keras_efficient.autodiff.record import values
from keras_efficient.models.unpaired_batches import UnpairedBatches
from tests.gradients import ENDS
from tests.gradients import LAST
from tests.gradients import fit_mode

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* maps")

LOGS = {"loss", "generator_loss", "discriminator_loss", "cycle_error"}


def random(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype="float32") * 2 - 1


def array(x):
    x = ops.convert_to_numpy(ops.stop_gradient(ops.convert_to_tensor(x)))
    return np.array(x)  # a copy, on every backend


def arrays(variables):
    return [array(variable) for variable in variables]


def stack(channels=3):
    """Not orthonormal, so that the cycle has an error."""
    start = keras.initializers.RandomNormal(stddev=0.3)

    def conv():
        return layers.InvertibleConv2D(
            channels, 3, padding="same", kernel_initializer=start
        )

    return [conv(), layers.InvertibleLeakyReLU(learned=True), conv()]


def translator(discriminator=lambda: models.PatchDiscriminator((4,)), **kwargs):
    return models.InvAutoTranslator(
        stack(), discriminator(), discriminator(), **kwargs
    )


def test_fit():
    """Unpaired images of different numbers; everything learns."""
    model = translator()
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.optimizers.Adam(0.01),
        **fit_mode(LAST),
    )
    model.build((None, 4, 4, 3))
    before = arrays(model.trainable_variables)
    a, b = random(8, 4, 4, 3), random(5, 4, 4, 3) ** 2
    logs = model.fit(a, b, batch_size=4, epochs=4, verbose=0).history
    assert set(logs) == LOGS
    for now, then in zip(arrays(model.trainable_variables), before):
        assert np.isfinite(now).all() and np.abs(now - then).max() > 1e-3
    assert logs["cycle_error"][-1] < 0.8 * logs["cycle_error"][0]
    assert logs["discriminator_loss"][-1] < logs["discriminator_loss"][0]
    np.testing.assert_allclose(
        logs["loss"],
        np.add(logs["generator_loss"], logs["discriminator_loss"]),
        rtol=1e-5,
    )


def test_validation_and_evaluation():
    a, b = random(6, 4, 4, 3), random(4, 4, 4, 3, seed=1)
    model = translator()
    model.compile(metrics=["mae"], jit_compile=False)
    held_out = a[:4], b[:3]
    logs = model.fit(
        a, b, batch_size=4, validation_data=held_out, verbose=0
    ).history
    assert {f"val_{name}" for name in LOGS | {"mae"}} <= set(logs)
    found = model.evaluate(*held_out, batch_size=4, return_dict=True, verbose=0)
    for name, value in found.items():
        np.testing.assert_allclose(logs[f"val_{name}"][0], value, rtol=1e-5)
    # Without shuffling the images are pairs; the third of B comes once more.
    pairs = np.abs(array(model(a[:4])) - np.concatenate([b[:3], b[:1]]))
    np.testing.assert_allclose(found["mae"], pairs.mean(), rtol=1e-5)


def gradients(loss, variables):
    """The gradient of `loss()`, on any backend."""

    def pure(*params):
        with keras.StatelessScope(zip(variables, params)):
            return loss()

    return arrays(backend.vjp(pure, *values(variables))[1](ops.ones(())))


def separate_gradients(model, a, b):
    """Those of each loss alone, written out, from its own variables only."""
    a, b = map(ops.convert_to_tensor, (a, b))
    generator = model.generator.trainable_variables
    judge_a, judge_b = model.discriminators()

    def square(x):
        return ops.mean(ops.square(x))

    def generator_loss():
        fake_b, fake_a = model.generator(a), model.generator.inverse(b)
        back_a, back_b = model.generator.inverse(fake_b), model(fake_a)
        adversarial = square(judge_a(fake_a) - 1) + square(judge_b(fake_b) - 1)
        cycle = ops.mean(ops.abs(back_a - a)) + ops.mean(ops.abs(back_b - b))
        return adversarial + model.cycle_weight * cycle

    fake_a, fake_b = array(model.translate(b, "A")), array(model.translate(a))
    found = gradients(generator_loss, generator)
    for judge, real, fake in ((judge_a, a, fake_a), (judge_b, b, fake_b)):
        found += gradients(
            lambda: (square(judge(real) - 1) + square(judge(fake))) / 2,
            judge.trainable_variables,
        )
    variables = generator + judge_a.trainable_variables
    return variables + judge_b.trainable_variables, found


@pytest.mark.parametrize("mode", ENDS)
def test_each_variable_steps_by_the_gradient_of_its_own_loss(mode):
    model = translator(cycle_weight=3.0)
    model.compile(
        keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.1), **fit_mode(mode)
    )
    model.build((None, 4, 4, 3))
    a, b = random(3, 4, 4, 3), random(3, 4, 4, 3, seed=1)
    model.train_on_batch(a, b)  # gradients must not add up over steps
    variables, found = separate_gradients(model, a, b)
    before = arrays(variables)
    model.train_on_batch(a, b)
    generator = len(model.generator.trainable_variables)
    rates = [0.01] * generator + [0.1] * (len(variables) - generator)
    for v, then, d, rate in zip(variables, before, found, rates, strict=True):
        np.testing.assert_allclose(then - array(v), rate * d, atol=2e-6)
        assert np.abs(d).max() > 1e-3  # far above the tolerance


def test_statistics_of_a_discriminator_are_those_of_its_own_loss():
    def discriminator():
        return keras.Sequential(
            [keras.layers.BatchNormalization(), keras.layers.Conv2D(1, 2)]
        )

    model = translator(discriminator)
    model.build((None, 4, 4, 3))
    a, b = random(2, 4, 4, 3), random(2, 4, 4, 3, seed=1)
    norm = keras.models.clone_model(model.discriminator_b).layers[0]
    model.compute_loss(a, b, model(a))
    for images in (b, model(a)):
        norm(images, training=True)
    ours = model.discriminator_b.layers[0]
    np.testing.assert_allclose(ours.moving_mean, norm.moving_mean, rtol=1e-5)
    assert np.abs(array(ours.moving_mean)).max() > 1e-4


def test_losses_of_layers_are_added():
    parts = stack()
    parts[0].kernel_regularizer = keras.regularizers.L2(1.0)
    model = models.InvAutoTranslator(
        parts, *map(models.PatchDiscriminator, [(2,)] * 2)
    )
    model.build((None, 4, 4, 3))
    a = random(2, 4, 4, 3)
    loss = model.compute_loss(a, a, model(a))
    parts = (model.generator_loss_tracker, model.discriminator_loss_tracker)
    own = sum(float(tracker.result()) for tracker in parts)
    penalty = np.sum(array(model.generator.layers[0].kernel) ** 2)
    np.testing.assert_allclose(float(loss) - own, penalty, rtol=1e-4)


def test_translate_is_the_stack_in_both_directions():
    judges = [models.PatchDiscriminator((2,)) for _ in "ab"]
    model = models.InvAutoTranslator(
        [
            layers.InvertibleDownsampling2D(),
            layers.InvertibleConv2D(12, 3, padding="same"),
            layers.InvertibleLeakyReLU(1.5, 0.7, learned=True),
            layers.InvertibleConv2D(12, 3, padding="same"),
            layers.InvertibleUpsampling2D(),
        ],
        *judges,
    )
    x = random(2, 6, 8, 3)
    model.build(x.shape)  # kernels start orthonormal
    there, back = model.translate(x), model.translate(x, to="A")
    for again in (model.translate(there, "A"), model.translate(back, "B")):
        np.testing.assert_allclose(array(again), x, atol=1e-5)
    np.testing.assert_array_equal(array(model(x)), array(there))
    assert np.abs(array(there) - x).max() > 0.1
    assert model.compute_output_shape(x.shape) == x.shape


def test_half_the_parameters_of_two_generators():
    model = translator()
    model.build((None, 4, 4, 3))

    def ordinary():
        slopes = [keras.layers.PReLU(shared_axes=[1, 2]) for _ in range(2)]
        convs = [keras.layers.Conv2D(3, 3, padding="same") for _ in range(2)]
        return keras.Sequential(
            [keras.Input((4, 4, 3)), convs[0], *slopes, convs[1]]
        )

    pair = ordinary().count_params() + ordinary().count_params()
    assert model.generator.count_params() <= 0.51 * pair
    # The variables count once, though both directions use them.
    judges = sum(d.count_params() for d in model.discriminators())
    weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert weights == model.generator.count_params() + judges


@pytest.mark.quick
def test_saving_and_going_on(tmp_path):
    a, b = random(4, 4, 4, 3), random(4, 4, 4, 3, seed=1)
    model = translator(cycle_weight=3.0)
    model.compile("adam", keras.optimizers.SGD(0.1, 0.9), metrics=["mae"])
    model.train_on_batch(a, b)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.cycle_weight == 3.0
    assert isinstance(again.generator_optimizer, keras.optimizers.Adam)
    assert float(again.discriminator_optimizer.momentum) == 0.9
    for to in "AB":
        np.testing.assert_array_equal(
            array(again.translate(a, to)), array(model.translate(a, to))
        )
    # Weights and optimizers: the next steps are the same.
    ours = model.train_on_batch(a, b, return_dict=True)
    theirs = again.train_on_batch(a, b, return_dict=True)
    assert "mae" in theirs and set(ours) == set(theirs)
    for x, y in zip(model.weights, again.weights, strict=True):
        np.testing.assert_allclose(array(x), array(y), atol=1e-6)


def test_weights_go_into_a_new_model(tmp_path):
    model, again = translator(), translator()
    x = random(2, 4, 4, 3)
    model(x), again(x)
    model.save_weights(tmp_path / "translator.weights.h5")
    again.load_weights(tmp_path / "translator.weights.h5")
    np.testing.assert_array_equal(array(again(x)), array(model(x)))
    config = model.get_config()
    assert models.InvAutoTranslator.from_config(config).get_config() == config


def test_float16_does_not_overflow():
    """Small slopes, whose inverses multiply by 1000 twice."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        slopes = [layers.InvertibleLeakyReLU(1e-3, 1e-3) for _ in range(2)]
        x = random(2, 4, 4, 3)
        judges = [models.PatchDiscriminator((2,)) for _ in "ab"]
        model = models.InvAutoTranslator(slopes, *judges)
        model.build(x.shape)
        back = array(model.translate(x, "A"))
        assert np.isfinite(back).all() and np.abs(back).max() > 6e4
        model = translator()
        model.compile(keras.optimizers.Adam(0.01))
        if keras.config.backend() == "torch":
            # PyTorch has no gradient of float16 convolutions on the CPU.
            found = model.evaluate(x, x, return_dict=True, verbose=0)
            assert np.isfinite(list(found.values())).all()
            return
        logs = model.fit(x, x, epochs=30, verbose=0).history
        optimizer = model.optimizer
        assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        assert np.isfinite(logs["loss"]).all()
        assert logs["cycle_error"][-1] < 0.9 * logs["cycle_error"][0]
    finally:
        keras.config.set_dtype_policy("float32")


def test_unpaired_batches():
    a, b = np.arange(7), np.arange(3)
    a, b = (n[:, None, None, None] for n in (a, b))
    batches = UnpairedBatches(a, b, 4)
    assert batches.num_batches == 2
    epochs = []
    for _ in range(2):
        x, y = map(np.concatenate, zip(*(batches[i] for i in range(2))))
        assert x.shape == y.shape == (7, 1, 1, 1)
        assert sorted(x.ravel()) == list(range(7))
        for start in (0, 3):  # each round is all of B
            assert sorted(y.ravel()[start : start + 3]) == [0, 1, 2]
        epochs.append((*x.ravel(), *y.ravel()))
        batches.on_epoch_end()
    assert epochs[0] != epochs[1]
    batches = UnpairedBatches(b, a, 4, shuffle=False)
    assert batches[1][0].ravel().tolist() == [1, 2, 0]
    assert batches[1][1].ravel().tolist() == [4, 5, 6]


def test_a_dataset_of_batches():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return random(2, 4, 4, 3), random(2, 4, 4, 3, seed=1)

    model = translator()
    model.compile(run_eagerly=True)
    assert set(model.fit(Batches(), verbose=0).history) == LOGS


def test_patch_discriminator():
    x = np.zeros((1, 96, 96, 3), "float32")
    model = models.PatchDiscriminator((2, 2, 2))
    base = array(model(x))
    assert base.shape == (1, 12, 12, 1)
    x[0, 48, 48] = 100.0
    seen = np.nonzero(array(model(x))[0, :, 48 // 8, 0] - base[0, :, 6, 0])[0]
    # A pixel is in the 46 pixels of 46 / 8 neighbouring scores, or one less.
    assert 46 // 8 <= seen.max() - seen.min() + 1 <= 46 // 8 + 1


def test_bad_input_is_refused():
    a, gray = random(2, 4, 4, 3), random(2, 4, 4, 1)
    for method in ("fit", "evaluate", "train_on_batch"):
        model = translator()  # after an error Keras leaves a broken one on JAX
        model.compile(run_eagerly=True)
        with pytest.raises(ValueError, match="the same number of channels"):
            getattr(model, method)(a, gray)
    model = translator()
    model.compile(run_eagerly=True)
    with pytest.raises(ValueError, match="images of B as `y`"):
        model.fit(a, verbose=0)
    with pytest.raises(ValueError, match="images of domain B must be an arr"):
        model.fit(a, gray[..., 0])
    with pytest.raises(ValueError, match="`to` must be 'A' or 'B'"):
        model.translate(a, "C")
    with pytest.raises(ValueError, match="`cycle_weight` must not be neg"):
        translator(cycle_weight=-1)
    with pytest.raises(TypeError, match="must have a method `inverse`"):
        models.InvAutoTranslator([keras.layers.Conv2D(3, 3)])


def test_stacks_that_do_not_restore_images_are_refused():
    def conv(filters, strides):
        return layers.InvertibleConv2D(filters, 2, strides)

    for parts in ([conv(4, 1)], [conv(3, 2)], [conv(12, 2)]):
        with pytest.raises(ValueError, match="images of the same shape in bo"):
            models.InvAutoTranslator(parts)(random(2, 4, 4, 3))
    down, up = layers.InvertibleDownsampling2D, layers.InvertibleUpsampling2D
    model = models.InvAutoTranslator([down(), conv(12, 1), up()])
    with pytest.raises(ValueError, match="that `pool_size` divides"):
        model(random(2, 5, 4, 3))
    # The layers know sizes A; those of B are seen in the first step.
    inner = conv(12, 2)
    inner.build((None, 4, 4, 3))
    model = models.InvAutoTranslator([conv(12, 2), layers.Inverse(inner)])
    model.compile(run_eagerly=True)
    with pytest.raises(ValueError, match="do not restore the size"):
        model.fit(random(2, 4, 4, 3), random(2, 5, 5, 3), verbose=0)


def test_compile_takes_two_optimizers():
    model = translator()
    with pytest.raises(ValueError, match=r"Received: \['loss', 'optimizer'\]"):
        model.compile(optimizer="adam", loss="mse")
    adam = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="must be two instances"):
        model.compile(adam, adam)
