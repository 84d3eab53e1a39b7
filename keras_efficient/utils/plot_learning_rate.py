import math

from keras_efficient.utils.matplotlib_module import matplotlib_module


def plot_learning_rate(history, axes=None):
    """Plot loss, learning rate and angular velocity, with the drops.

    Args:
        history: The `History` that `fit` returns, or its dictionary `history`.
        axes: Sequence of three Matplotlib axes to draw in, or None for a new
            figure. Several runs may be drawn in the same. Defaults to `None`.

    Returns:
        The Matplotlib figure: above each other the losses, the learning rates
        (both on a logarithmic scale where they are positive) and the angular
        velocity of `keras_efficient.callbacks.AutoDrop`, if there is one. A
        dotted line marks the end of each epoch in which the learning rate was
        dropped, by any callback that logs it and never raises it.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: the history is empty.

    Example:

    ```python
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    x, y = keras.random.normal((64, 8)), keras.random.normal((64, 1))
    auto_drop = keras_efficient.callbacks.AutoDrop()
    history = model.fit(x, y, epochs=5, callbacks=[auto_drop])
    figure = keras_efficient.utils.plot_learning_rate(history)
    figure.savefig("learning_rate.png")
    ```
    """
    logs = getattr(history, "history", history)
    if not logs:
        raise ValueError(
            "`history` must hold at least one epoch. Pass what `fit` returned. "
            f"Received: history={history}"
        )
    if axes is None:
        pyplot = matplotlib_module("pyplot", "plot_learning_rate")
        _, axes = pyplot.subplots(
            3, 1, figsize=(7, 8), sharex=True, layout="constrained"
        )
    rates = [key for key in logs if key.startswith("learning_rate")]
    for ax, keys, label in zip(
        axes,
        (["loss", "val_loss"], rates, ["angular_velocity"]),
        ("loss", "learning rate", "angular velocity, degrees"),
    ):
        lines = [(key, logs[key]) for key in keys if key in logs]
        if not lines:
            ax.set_axis_off()
            continue
        for key, values in lines:
            ax.plot(range(1, len(values) + 1), values, label=key)
        known = [v for _, values in lines for v in values if math.isfinite(v)]
        if label != "angular velocity, degrees" and known and min(known) > 0:
            ax.set_yscale("log")
        if len(lines) > 1:
            ax.legend()
        for epoch in _drops(logs, rates):
            ax.axvline(epoch, color="gray", linestyle=":", linewidth=1)
        ax.set(ylabel=label, xlabel="epoch (dotted: learning rate drops)")
    return axes[0].figure


def _drops(logs, rates):
    """Return the epochs, from 1, in which the learning rate was dropped."""
    if "drops" in logs:
        counts = [0, *logs["drops"]]
        steps = zip(counts, counts[1:])
        return [i + 1 for i, (old, new) in enumerate(steps) if new > old]
    pairs = [
        (i + 1, old, new)
        for key in rates
        for i, (old, new) in enumerate(zip(logs[key], logs[key][1:]))
    ]
    if any(new > old for _, old, new in pairs):
        return []  # a rate that goes up and down has no drops to mark
    # The rate logged is that of the epoch; a lower one began with the next.
    return sorted({epoch for epoch, old, new in pairs if new < old})
