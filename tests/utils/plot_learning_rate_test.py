import sys

import keras
import numpy as np
import pytest

from keras_efficient.callbacks import AutoDrop
from keras_efficient.utils import plot_learning_rate

NAN = float("nan")
LOGS = {
    "loss": [3.0, 2.0, 1.0, 0.5],
    "val_loss": [3.5, 2.5, 1.5, 1.0],
    "learning_rate": [0.1, 0.1, 0.02, 0.02],
    "angular_velocity": [NAN, 60.0, 90.0, 80.0],
    "drops": [0.0, 1.0, 1.0, 2.0],
}


@pytest.fixture(autouse=True)
def matplotlib():
    module = pytest.importorskip("matplotlib")
    module.use("Agg")
    yield
    module.pyplot.close("all")


def lines(axes, dotted):
    return [
        line for line in axes.lines if (line.get_linestyle() == ":") == dotted
    ]


def test_everything_is_in_one_figure():
    figure = plot_learning_rate(LOGS)
    loss, rate, angle = figure.axes
    labels = [line.get_label() for line in lines(loss, dotted=False)]
    assert labels == ["loss", "val_loss"]
    (line,) = lines(rate, dotted=False)
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(line.get_ydata(), LOGS["learning_rate"])
    (line,) = lines(angle, dotted=False)
    np.testing.assert_array_equal(line.get_ydata(), LOGS["angular_velocity"])
    assert [axes.get_yscale() for axes in figure.axes] == [
        "log",
        "log",
        "linear",
    ]
    for axes in figure.axes:
        drops = [line.get_xdata()[0] for line in lines(axes, dotted=True)]
        assert drops == [2, 4]


def test_history_of_a_run_is_drawn_and_saved(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    x, y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    callbacks = [AutoDrop("epoch", threshold=90, max_threshold=90)]
    history = model.fit(x, y, epochs=6, verbose=0, callbacks=callbacks)
    figure = plot_learning_rate(history)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert lines(figure.axes[1], dotted=True)


def test_other_callbacks_and_several_optimizers():
    """Without `drops`, an epoch before a lower rate is one of a drop."""
    logs = {
        "loss": [-1.0, -2.0, -3.0],
        "learning_rate_a": [0.1, 0.01, 0.01],
        "learning_rate_b": [0.2, 0.2, 0.1],
    }
    figure = plot_learning_rate(logs)
    assert len(lines(figure.axes[1], dotted=False)) == 2
    drops = [line.get_xdata()[0] for line in lines(figure.axes[0], True)]
    assert drops == [1, 2]
    assert figure.axes[0].get_yscale() == "linear"


def test_a_rate_that_rises_has_no_drops():
    logs = {"loss": [3.0, 2.0, 1.0], "learning_rate": [0.1, 0.2, 0.1]}
    figure = plot_learning_rate(logs)
    assert not lines(figure.axes[0], dotted=True)
    assert not figure.axes[2].axison


def test_given_axes_are_drawn_in():
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 2)
    for column in axes.T:
        assert plot_learning_rate(LOGS, axes=column) is figure
    assert len(figure.axes) == 6
    assert all(ax.lines for ax in figure.axes)


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one epoch"):
        plot_learning_rate({})


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"keras-efficient\[guides\]"):
        plot_learning_rate(LOGS)
