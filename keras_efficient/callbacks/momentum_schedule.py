import keras

from keras_efficient.backend.layers_inside import layers_inside


class MomentumSchedule(keras.callbacks.Callback):
    """Move the momentum of a reversible network while it is fine-tuned.

    With s the number of steps that the optimizer has made, all
    `keras_efficient.layers.MomentumCoupling` of the model get

    ```
    m = start + (end - start) min(1, s / steps)
    ```

    With a small momentum the function of `to_reversible` is near that of the
    plain network. With a larger one less is lost in the gradient: a rounding
    error grows by `1 / m` a layer. The schedule starts near the one and leads
    to the other, as Dr2Net does with its two coefficients. The network learns
    the change on the way, so `steps` must be a part of the fine-tuning only.

    The momentum is a weight. It is saved with the model, and nothing is traced
    anew when it changes. A run that `keras.callbacks.BackupAndRestore` goes on
    with has the momentum of its step.

    Args:
        start: Float between 0 and 1.
        end: Float between 0 and 1.
        steps: Integer, after how many steps `end` is reached.

    Raises:
        ValueError: an argument is outside of its range, or the model has no
            such couplings or no optimizer.

    Example:

    ```python
    blocks = [
        keras_efficient.layers.MomentumCoupling(keras.layers.Dense(8))
        for _ in range(4)
    ]
    run = keras_efficient.layers.ReversibleSequence(blocks)
    model = keras.Sequential([keras.Input((16,)), run])
    model.compile("adam", "mse")
    schedule = keras_efficient.callbacks.MomentumSchedule(0.3, 0.8, steps=10)
    x = np.random.normal(size=(640, 16))
    model.fit(x, x, callbacks=[schedule])
    ```

    Reference:
        - [Zhao et al., 2024](https://arxiv.org/abs/2401.04105)
    """

    def __init__(self, start, end, steps):
        super().__init__()
        if not (0 < start < 1 and 0 < end < 1 and steps > 0):
            raise ValueError(
                "`start` and `end` must be between 0 and 1, both excluded, and "
                f"`steps` above 0. Received: start={start}, end={end}, "
                f"steps={steps}"
            )
        self.start, self.end, self.steps = start, end, steps

    def on_train_begin(self, logs=None):
        self._moves = True
        # That of a `MomentumCoupling` is a weight, other layers have a number.
        self._momenta = [
            layer.momentum
            for layer in layers_inside(self.model)
            if isinstance(getattr(layer, "momentum", None), keras.Variable)
        ]
        if not self._momenta or self.model.optimizer is None:
            raise ValueError(
                "`MomentumSchedule` needs a model with an optimizer and with "
                "`keras_efficient.layers.MomentumCoupling` inside, such as "
                "`keras_efficient.models.hub.to_reversible` makes. Received: "
                f"model '{self.model.name}' with {len(self._momenta)} of them "
                f"and optimizer={self.model.optimizer}"
            )

    def on_train_batch_begin(self, batch, logs=None):
        if not self._moves:
            return
        # On JAX variables are elsewhere while `fit` runs, until a callback asks
        # for the model.
        part = min(1, int(self.model.optimizer.iterations) / self.steps)
        for momentum in self._momenta:
            momentum.assign(self.start + (self.end - self.start) * part)
        self._moves = part < 1
