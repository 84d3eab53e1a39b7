import math

import keras
import numpy as np
import pytest

from keras_efficient.callbacks import AutoDrop

NAN = math.nan


def follow(points, learning_rate=0.1, dtype=None, mode="epoch", **arguments):
    """Lead a model along points, one an epoch. Return callback and logs."""
    points = np.asarray(points, "float32")
    dense = keras.layers.Dense(1, use_bias=False, dtype=dtype)
    model = keras.Sequential([keras.Input(points.shape[1:]), dense])
    model.compile(optimizer=keras.optimizers.SGD(learning_rate), loss="mse")
    callback = AutoDrop(mode, **arguments)
    callback.set_model(model)
    callback.on_train_begin()
    history = []
    for epoch, point in enumerate(points):
        dense.kernel.assign(point[:, None])
        logs = {}
        model.optimizer.iterations.assign_add(1)
        callback.on_epoch_end(epoch, logs)
        history.append(logs)
    return callback, {key: [logs[key] for logs in history] for key in logs}


def walk(turns, scale=1.0):
    """Return points in the plane; each step turns by so many degrees."""
    headings = np.radians(np.cumsum([0.0, *turns]))
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    return scale * np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])


def assert_logged(values, expected, tolerance=2e-3):
    assert all(type(value) is float for value in values)
    np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance)


def mean_output(y_true, y_pred):
    """A loss whose gradient is the same everywhere: all steps are alike."""
    return keras.ops.mean(y_pred)


def linear_model(optimizer, **arguments):
    dense = keras.layers.Dense(1, kernel_initializer="ones", **arguments)
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile(optimizer=optimizer, loss=mean_output)
    return model


def fit(model, callbacks, epochs):
    x, y = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")
    return model.fit(
        x, y, batch_size=2, epochs=epochs, callbacks=callbacks, verbose=0
    )


class Recorder(keras.callbacks.Callback):
    """Keep the parameters and the logs of every epoch."""

    def __init__(self):
        super().__init__()
        self.points, self.logs = [], []

    def _take_point(self):
        weights = [w.ravel() for w in self.model.get_weights()]
        self.points.append(np.concatenate(weights))

    def on_train_begin(self, logs=None):
        self._take_point()

    def on_epoch_end(self, epoch, logs=None):
        self._take_point()
        self.logs.append(dict(logs))


@pytest.mark.parametrize("angle", [0, 60, 90, 180])
def test_angle_of_a_hand_made_trajectory(angle):
    _, logs = follow(walk([angle]))
    assert_logged(logs["angular_velocity"], [NAN, NAN, angle])


def test_angle_is_of_the_whole_parameter_vector():
    layers = [keras.layers.Dense(1, use_bias=False) for _ in range(2)]
    model = keras.Sequential([keras.Input((1,)), *layers])
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    callback = AutoDrop("epoch")
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, point in enumerate(walk([60])):
        for layer, value in zip(layers, point):
            layer.kernel.assign([[value]])
        logs = {}
        callback.on_epoch_end(epoch, logs)
    assert_logged([logs["angular_velocity"]], [60])


@pytest.mark.parametrize("scale", [1e-6, 1e-30])
def test_angle_of_tiny_steps(scale):
    _, logs = follow(walk([0, 90, 60], scale))
    assert_logged(logs["angular_velocity"], [NAN, NAN, 0, 90, 60])


def test_steps_of_different_length():
    _, logs = follow([[0, 0], [1e-4, 0], [1e-4 + 5, 5]])
    assert_logged(logs["angular_velocity"], [NAN, NAN, 45], 0.01)


def test_zero_step_is_passed_over():
    points = walk([90, 90])
    points = np.insert(points, 2, points[1], axis=0)
    points = np.insert(points, 4, points[3], axis=0)
    callback, logs = follow(points)
    assert_logged(logs["angular_velocity"], [NAN, NAN, NAN, 90, NAN, 90])
    assert callback.drops == [5]


def test_no_drop_while_nothing_moves():
    callback, logs = follow(np.ones((8, 2)))
    assert_logged(logs["angular_velocity"], [NAN] * 8)
    assert callback.drops == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_parameters_clear_the_history(bad):
    points = walk([60, 90, 120, 120, 120, 120])
    points[3, 1] = bad
    callback, logs = follow(points)
    expected = [NAN, NAN, 60, NAN, NAN, NAN, 120, 120]
    assert_logged(logs["angular_velocity"], expected)
    assert callback.drops == [7]


def test_threshold_grows_to_its_maximum():
    turns = []
    for threshold in (0.01, 0.05, 0.25, 1.0, 1.0):
        # Of each four steps only the last angle changes by less.
        turns += [90, 90 + 1.2 * threshold, 90 + 0.4 * threshold, 45]
    callback, logs = follow(walk(turns), factor=0.2, threshold=0.01)
    assert callback.drops == [4, 8, 12, 16, 20]
    # The rate of an epoch is the one before the drop at its end.
    rates = np.repeat(0.1 * 0.2 ** np.arange(6), [5, 4, 4, 4, 4, 1])
    np.testing.assert_allclose(logs["learning_rate"], rates, rtol=1e-5)


def test_drop_clears_the_history():
    callback, logs = follow(walk([90] * 8))
    expected = [NAN, NAN, 90, 90, NAN, 90, 90, NAN, 90, 90]
    assert_logged(logs["angular_velocity"], expected)
    assert callback.drops == [3, 6, 9]


def test_learning_rate_stops_at_its_minimum():
    callback, logs = follow(walk([90] * 5), learning_rate=0.1, min_lr=0.03)
    expected = [0.1, 0.1, 0.1, 0.1, 0.03, 0.03, 0.03]
    np.testing.assert_allclose(logs["learning_rate"], expected, rtol=1e-6)
    assert callback.drops == [3]


@pytest.mark.parametrize("learning_rate", [0.0005, 0.001])
def test_no_drop_at_or_below_the_minimum(learning_rate):
    # The float32 next to 0.001 is larger than 0.001.
    callback, logs = follow(walk([90] * 5), learning_rate, min_lr=0.001)
    np.testing.assert_allclose(logs["learning_rate"], learning_rate, rtol=1e-6)
    assert_logged(logs["angular_velocity"], [NAN, NAN] + [90] * 5)
    assert callback.drops == []


def test_same_trajectory_same_decisions():
    turns = [30, 30.6, 31.0]  # 0.6 is above 0.5, 0.4 below: a drop
    turns += [10, 40, 41.2, 40.3]  # 1.2 is above 1.0, 0.9 below
    turns += [70, 100, 95, 93.5]  # a fall of 5 is above 2.0, 1.5 below
    turns += [-5, 20, 22.2, 24.1]  # 2.2 is above 2.0, 1.9 below
    callback, logs = follow(
        walk(turns), factor=0.5, threshold=0.5, max_threshold=2.0
    )
    assert callback.drops == [4, 8, 12, 16]
    turns[3] = turns[7] = turns[11] = NAN  # the first steps after a drop
    assert_logged(logs["angular_velocity"], [NAN, NAN, *turns])
    rates = [0.1] * 5 + [0.05] * 4 + [0.025] * 4 + [0.0125] * 4
    np.testing.assert_allclose(logs["learning_rate"], rates, rtol=1e-6)


@pytest.mark.parametrize("rate, angle", [(0.06, 118.2), (0.03, 103.3)])
def test_noisy_quadratic(rate, angle):
    """Gradient descent on 1/2 sum a_i (x_i - c_i)^2, noisy centres c_i.

    At equilibrium the variance of x_i is r a_i / (2 - r a_i), and
    cos w = -r/2 sum(a^3 / (2 - r a)) / sum(a^2 / (2 - r a)).
    """
    a = np.linspace(0.1, 20, 200)
    noise = np.random.default_rng(0)
    x = noise.normal(size=200) * np.sqrt(rate * a / (2 - rate * a))
    points = []
    for _ in range(500):
        x = x - rate * a * (x - noise.normal(size=200))
        points.append(x)
    _, logs = follow(points, threshold=1e-9)
    weights = a**2 / (2 - rate * a)
    cosine = -rate / 2 * np.sum(a * weights) / np.sum(weights)
    measured = np.nanmean(logs["angular_velocity"])
    assert abs(math.degrees(math.acos(cosine)) - angle) < 0.1
    assert abs(measured - angle) < 1.0


def test_fit_trains_at_the_dropped_rate():
    recorder = Recorder()
    model = linear_model(keras.optimizers.SGD(0.1), use_bias=False)
    callback = AutoDrop("epoch")
    history = fit(model, [callback, recorder], epochs=9).history
    assert callback.drops == [3, 6]
    rates = np.repeat([0.1, 0.02, 0.004], [4, 3, 2])
    np.testing.assert_allclose(history["learning_rate"], rates, rtol=1e-6)
    angles = [NAN, NAN, 0, 0, NAN, 0, 0, NAN, 0]
    assert_logged(history["angular_velocity"], angles)
    steps = -np.diff(recorder.points, axis=0)
    expected = 2 * rates[:, None] * np.ones((1, 2))  # two batches an epoch
    np.testing.assert_allclose(steps, expected, rtol=1e-4)
    assert float(np.asarray(model.optimizer.learning_rate)) == pytest.approx(
        0.004
    )


def test_callbacks_listed_later_see_the_logs():
    recorder = Recorder()
    fit(linear_model("sgd"), [AutoDrop("epoch"), recorder], epochs=1)
    assert {"loss", "learning_rate", "angular_velocity", "drops"} == set(
        recorder.logs[0]
    )


def test_second_fit_starts_anew():
    model = linear_model(keras.optimizers.SGD(0.1))
    callback = AutoDrop("epoch")
    assert fit(model, [callback], epochs=4).epoch == [0, 1, 2, 3]
    assert callback.drops == [3]
    history = fit(model, [callback], epochs=3).history
    assert callback.drops == []
    assert_logged(history["angular_velocity"], [NAN, NAN, 0])
    np.testing.assert_allclose(history["learning_rate"], 0.02, rtol=1e-6)


def test_second_fit_resets_the_threshold():
    callback, _ = follow(walk([90] * 8))
    assert callback.drops == [3, 6, 9]
    callback.on_train_begin()
    kernel = callback.model.trainable_variables[0]
    for epoch, point in enumerate(walk([90, 90.1, 90, 90.1])):
        callback.model.optimizer.iterations.assign_add(1)
        kernel.assign(point[:, None])
        callback.on_epoch_end(epoch, {})
    assert callback.drops == []


def schedule():
    return keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "learning_rate, kind",
    [(schedule, "`LearningRateSchedule`"), (lambda: lambda: 0.1, "callable")],
)
def test_learning_rate_that_cannot_be_set(learning_rate, kind, wrapped):
    optimizer = keras.optimizers.SGD(learning_rate(), name="descent")
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model = linear_model(optimizer)
    message = f"'descent' with a {kind} .* such as `learning_rate=0.1`"
    with pytest.raises(ValueError, match=message):
        fit(model, [AutoDrop("epoch")], epochs=1)


def multi_optimizer(kind, learning_rate=0.2):
    first = keras.optimizers.SGD(0.1, name="first")
    second = keras.optimizers.SGD(learning_rate, name="second")
    if kind == "map":
        choose = keras.optimizers.OptimizerMap(first)
        choose[".*/bias"] = second
    else:  # On TensorFlow it is not called before the first step.

        def choose(variable):
            return second if "bias" in variable.path else first

    optimizer = keras.optimizers.MultiOptimizer(choose)
    if kind == "scaled":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


@pytest.mark.parametrize("kind", ["map", "function", "scaled"])
def test_multi_optimizer(kind):
    callback = AutoDrop("epoch", min_lr=0.03)
    model = linear_model(multi_optimizer(kind))
    history = fit(model, [callback], epochs=8).history
    # The first optimizer is at its minimum after the first drop.
    first = np.repeat([0.1, 0.03], [4, 4])
    second = np.repeat([0.2, 0.04, 0.03], [4, 3, 1])
    assert callback.drops == [3, 6]
    assert "learning_rate" not in history
    np.testing.assert_allclose(history["learning_rate_first"], first, 1e-5)
    np.testing.assert_allclose(history["learning_rate_second"], second, 1e-5)


def test_schedule_in_a_multi_optimizer():
    model = linear_model(multi_optimizer("function", schedule()))
    with pytest.raises(ValueError, match="'second' with a `LearningRate"):
        fit(model, [AutoDrop("epoch")], epochs=1)


def test_loss_scale_optimizer():
    optimizer = keras.optimizers.SGD(0.1)
    model = linear_model(keras.optimizers.LossScaleOptimizer(optimizer))
    history = fit(model, [AutoDrop("epoch")], epochs=5).history
    expected = [0.1, 0.1, 0.1, 0.1, 0.02]
    np.testing.assert_allclose(history["learning_rate"], expected, rtol=1e-6)


def two_layer_callback():
    layers = [keras.layers.Dense(1, use_bias=False) for _ in range(2)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    layers[1].trainable = False
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    callback = AutoDrop("epoch")
    callback.set_model(model)
    callback.on_train_begin()
    return callback, layers


def test_frozen_variables_are_left_out():
    callback, (trained, frozen) = two_layer_callback()
    angles = []
    for epoch, point in enumerate(walk([60, 120])):
        trained.kernel.assign(point[:, None])
        frozen.kernel.assign([[100.0 * epoch]])
        logs = {}
        callback.on_epoch_end(epoch, logs)
        angles.append(logs["angular_velocity"])
    assert_logged(angles, [NAN, NAN, 60, 120])


def test_change_of_the_trainable_variables_clears_the_history():
    callback, (trained, frozen) = two_layer_callback()
    angles = []
    for epoch, point in enumerate(walk([90] * 5)):
        frozen.trainable = epoch >= 3
        callback.model.optimizer.iterations.assign_add(1)
        trained.kernel.assign(point[:, None])
        logs = {}
        callback.on_epoch_end(epoch, logs)
        angles.append(logs["angular_velocity"])
    assert_logged(angles, [NAN, NAN, 90, NAN, NAN, 90, 90])
    assert callback.drops == [6]


def test_bfloat16_variables():
    # Multiples of 1/4 that bfloat16 holds.
    points = [[0, 0], [1, 0], [1.5, 0.5], [1.25, 0.75], [1.0, 0.5]]
    callback, logs = follow(points, dtype="bfloat16")
    assert callback.model.trainable_variables[0].dtype == "bfloat16"
    assert_logged(logs["angular_velocity"], [NAN, NAN, 45, 90, 90])
    assert callback.drops == [4]


def test_fit_in_bfloat16():
    model = linear_model(keras.optimizers.SGD(0.125), dtype="bfloat16")
    callback = AutoDrop("epoch")
    history = fit(model, [callback], epochs=5).history
    assert_logged(history["angular_velocity"], [NAN, NAN, 0, 0, NAN])
    assert callback.drops == [3]


@pytest.mark.parametrize(
    "arguments",
    [
        {"factor": 0.0},
        {"factor": 1.0},
        {"threshold": 0.0},
        {"threshold": NAN},
        {"threshold": 200.0, "max_threshold": 200.0},
        {"max_threshold": 0.005},
        {"max_threshold": 181.0},
        {"min_lr": -0.1},
        {"min_lr": math.inf},
        {"verbose": 2},
    ],
)
def test_arguments_out_of_range(arguments):
    name, value = next(iter(arguments.items()))
    message = rf"`{name}` must be .*Received: {name}={value}"
    with pytest.raises(ValueError, match=message):
        AutoDrop(**{"mode": "epoch", **arguments})


def test_report(capsys):
    follow(walk([90, 90]))
    assert capsys.readouterr().out == ""
    follow(walk([90, 90]), verbose=1)
    out = capsys.readouterr().out
    assert "Epoch 4: AutoDrop reducing the learning rate" in out
    assert "to 0.02." in out
    keras.config.disable_interactive_logging()
    try:
        follow(walk([90, 90]), verbose=1)
    finally:
        keras.config.enable_interactive_logging()
    assert capsys.readouterr().out == ""
