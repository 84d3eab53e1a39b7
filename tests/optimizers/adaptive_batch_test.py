"""AdaptiveBatch and AdaGradNorm: batches that grow with the noise."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_efficient.optimizers import AdaGradNorm
from keras_efficient.optimizers import AdaptiveBatch
from tests.marks import once
from tests.optimizers.table import BACKEND
from tests.optimizers.table import check_close
from tests.optimizers.table import check_equal
from tests.optimizers.table import make_gradients
from tests.optimizers.table import make_variables
from tests.optimizers.table import normal
from tests.optimizers.table import stepper
from tests.optimizers.table import to_numpy


def fixed(optimizer, micro_batches):
    return AdaptiveBatch(
        optimizer,
        micro_batches=micro_batches,
        max_micro_batches=micro_batches,
    )


def test_a_fixed_number_is_gradient_accumulation():
    """Also in bfloat16, with decay, a norm and a scale of the loss."""
    options = {"weight_decay": 0.1, "global_clipnorm": 1.0}
    ours, theirs = make_variables(), make_variables()
    scaled = keras.optimizers.LossScaleOptimizer(
        fixed(keras.optimizers.AdamW(0.1, **options), 3), initial_scale=8.0
    )
    step_fn = stepper(scaled, ours)
    keras_step_fn = stepper(
        keras.optimizers.AdamW(0.1, gradient_accumulation_steps=3, **options),
        theirs,
    )
    for step in range(8):
        after = step_fn(make_gradients(step, 8.0))
        check_close(after, keras_step_fn(make_gradients(step)), 1e-5)
    overflow = make_gradients(8)
    overflow[0][0, 0] = np.inf
    state = to_numpy(scaled.inner_optimizer.variables)
    step_fn(overflow)
    check_equal(scaled.inner_optimizer.variables, state)


def noisy(rng, mean, scale=1.0):
    """A gradient of a micro-batch of 4."""
    size = mean.size
    samples = mean + scale * rng.normal(size=(4, size))
    return samples.mean(0).astype("float32")


def test_noise_and_signal_have_no_bias():
    """True values: noise d/4, signal |mean|^2; the plain ratio has bias."""
    rng, size = np.random.default_rng(0), 50
    mean = np.full(size, 0.1)
    variable = keras.Variable(np.zeros(size, "float32"), name="kernel")
    optimizer = fixed(keras.optimizers.SGD(0.0), 2)
    step_fn = stepper(optimizer, [variable])
    optimizer.decay = 0.0  # of which nothing is traced yet
    noises, signals, plain = [], [], []
    for _ in range(300):
        pair = [noisy(rng, mean) for _ in range(2)]
        for gradient in pair:
            step_fn([gradient])
        noises.append(float(ops.convert_to_numpy(optimizer._noise)))
        signals.append(float(ops.convert_to_numpy(optimizer._signal)))
        plain.append(np.sum(np.mean(pair, 0) ** 2))
    for values, true in ((noises, size / 4), (signals, 0.5)):
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - true) < 3 * error
    assert np.mean(plain) > 10 * 0.5  # S / M = 6.25 too much
    assert np.mean(np.array(signals) < 0) > 0.2  # hence the averages


def test_the_number_grows_to_what_noise_asks_for_and_never_shrinks():
    """By the equations in NumPy: tests begin late, and at most double it."""
    rng, mean = np.random.default_rng(1), np.full(50, 0.5)
    variable = keras.Variable(np.zeros(50, "float32"), name="kernel")
    optimizer = AdaptiveBatch(
        keras.optimizers.SGD(0.0), eta=0.4, decay=0.5, max_micro_batches=24
    )
    step_fn = stepper(optimizer, [variable])
    m, noise, signal, steps, batch = 2, 0.0, 0.0, 0, []
    seen = []
    for i in range(300):
        gradient = noisy(rng, mean, 3.0 if i < 200 else 0.1)
        step_fn([gradient])
        batch.append(gradient.astype("float64"))
        if len(batch) == m:
            steps += 1
            spread = np.sum(np.var(batch, axis=0, ddof=1))
            square = np.sum(np.mean(batch, axis=0) ** 2)
            noise = 0.5 * noise + 0.5 * spread
            signal = 0.5 * signal + 0.5 * (square - spread / m)
            if steps >= 2:
                wanted = np.ceil(noise / (0.4**2 * max(signal, 1e-30)))
                m = int(max(m, min(wanted, 2 * m, 24)))
            batch = []
            scale = float(ops.convert_to_numpy(optimizer.noise_scale))
            if signal > 0.1:
                np.testing.assert_allclose(scale, noise / signal, rtol=1e-3)
        assert int(ops.convert_to_numpy(optimizer.micro_batches)) == m
        seen.append(m)
    assert seen[0] == 2 and seen[-1] > 4 and len(set(seen)) > 2


@once
def test_powers_of_two_and_intervals():
    rng, mean = np.random.default_rng(1), np.full(50, 0.5)
    variable = keras.Variable(np.zeros(50, "float32"), name="kernel")
    optimizer = AdaptiveBatch(
        keras.optimizers.SGD(0.0),
        eta=0.4,
        decay=0.0,
        power_of_two=True,
        test_interval=4,
    )
    step_fn = stepper(optimizer, [variable])
    for _ in range(120):
        before = int(optimizer.micro_batches.numpy())
        step_fn([noisy(rng, mean, 3.0)])
        after = int(optimizer.micro_batches.numpy())
        assert after & (after - 1) == 0
        if after != before:
            assert int(optimizer.iterations.numpy()) % 4 == 0
    assert after > 2


@keras.saving.register_keras_serializable(package="keras_efficient_tests")
def ramp(number):
    return 1 + number // 4


@pytest.mark.parametrize("how", ["schedule", "test"])
def test_fit_without_a_retrace_and_resumed_within_a_batch(
    how, tmp_path, monkeypatch
):
    calls, measure = [], AdaptiveBatch._measure

    def counted(self, *args):
        calls.append(args)
        return measure(self, *args)

    monkeypatch.setattr(AdaptiveBatch, "_measure", counted)
    options = {"schedule": ramp} if how == "schedule" else {"eta": 0.05}
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    optimizer = AdaptiveBatch(
        keras.optimizers.Adam(0.01), decay=0.5, max_micro_batches=8, **options
    )
    jit = {"jit_compile": True} if BACKEND == "tensorflow" else {}
    model.compile(optimizer, "mse", **jit)
    x = normal(51, 6)
    y = normal(51, 1, seed=1)
    model.fit(x[:2], y[:2], batch_size=2, verbose=0)
    traced = len(calls)
    model.fit(x[:50], y[:50], batch_size=2, verbose=0)
    if BACKEND != "torch":
        assert len(calls) == traced
    numbers = [optimizer.micro_batches, optimizer.iterations, optimizer._count]
    m, updates, left = (int(ops.convert_to_numpy(v)) for v in numbers)
    assert left > 0  # of this epoch, for the next
    if how == "schedule":  # 1, 1, 1, 1, 2, 2, 3 = two of 2, 3, 3, 4 ...
        assert m == 7
    else:
        assert m == 8
    monkeypatch.undo()  # a file is compiled only where `compile` is Keras' own
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for m in (model, loaded):
        m.compile(m.optimizer, "mse", **jit)
        m.fit(x, y, batch_size=2, shuffle=False, verbose=0)
    check_equal(loaded.get_weights(), model.get_weights())
    check_equal(loaded.optimizer.variables, model.optimizer.variables)


def test_adagrad_norm_computes_its_equations():
    """One number for all tensors; also accumulated, and with faults."""
    ours = make_variables()
    optimizer = AdaGradNorm(
        0.5, weight_decay=0.1, clipnorm=2.0, gradient_accumulation_steps=2
    )
    step_fn = stepper(optimizer, ours)
    values, squares = to_numpy(ours), 1e-6
    for step in range(3):
        first, second = make_gradients(2 * step), make_gradients(2 * step + 1)
        step_fn(first)
        after = step_fn(second)
        mean = [(a + b) / 2 for a, b in zip(first, second)]
        mean = [g * min(1.0, 2.0 / np.linalg.norm(g)) for g in mean]
        squares += sum(np.sum(g**2) for g in mean)
        values = [
            x - 0.5 * (0.1 * x + g / np.sqrt(squares))
            for x, g in zip(values, mean)
        ]
        check_close(after, values, 1e-5)
    optimizer = AdaptiveBatch(AdaGradNorm(0.5))
    step_fn, faulty = stepper(optimizer, make_variables()), make_gradients(0)
    faulty[0][0] = np.nan
    for gradients in (faulty, make_gradients(1)) * 2:
        after = step_fn(gradients)
    for x in after:
        assert np.isfinite(x).all()
    for _ in range(2):
        step_fn(make_gradients(2))
    assert 0 < float(optimizer._signal) < np.inf


@once
def test_what_cannot_be_right_is_refused():
    for options in (
        {"eta": 0.0},
        {"micro_batches": 1},
        {"max_micro_batches": 1},
        {"test_interval": 0},
        {"decay": 1.0},
    ):
        name = next(iter(options))
        with pytest.raises(ValueError, match=f"`{name}` must be.*Received"):
            AdaptiveBatch(keras.optimizers.SGD(), **options)
    sgd = keras.optimizers.SGD(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="`gradient_accumulation_steps`"):
        AdaptiveBatch(sgd)
    with pytest.raises(ValueError, match="`initial_accumulator_value` must be"):
        AdaGradNorm(initial_accumulator_value=0.0)
