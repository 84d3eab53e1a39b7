import copy
import math

import keras
import numpy as np
from keras import ops

from keras_efficient.autodiff.held_constant import held_constant
from keras_efficient.backend.arguments import as_array
from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers


class JointBatches(keras.utils.PyDataset):
    """Batches of training examples, each with as many tuning examples."""

    def __init__(self, train, tuning, batch_size, shuffle):
        super().__init__()
        self.sets = [
            keras.tree.map_structure(as_array, s) for s in (train, tuning)
        ]
        self.sizes = [len(keras.tree.flatten(s)[0]) for s in self.sets]
        self.batch_size, self.shuffle = batch_size, shuffle
        self.on_epoch_end()

    @property
    def num_batches(self):
        return -(-self.sizes[0] // self.batch_size)

    def on_epoch_end(self):
        draw = np.random.permutation if self.shuffle else np.arange
        self.orders = []
        for size in self.sizes:
            rounds = -(-self.sizes[0] // size)
            order = np.concatenate([draw(size) for _ in range(rounds)])
            self.orders.append(order[: self.sizes[0]])

    def __getitem__(self, index):
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        (x, y), (tuning_x, tuning_y) = (
            keras.tree.map_structure(lambda a: a[order[part]], arrays)
            for arrays, order in zip(self.sets, self.orders)
        )
        return (
            {"train": x, "tuning": tuning_x},
            {"train": y, "tuning": tuning_y},
        )


@keras.saving.register_keras_serializable(package="keras_efficient")
class SelfTuning(keras.Model):
    """Tune hyperparameters in the run that trains the weights.

    One run takes the place of a search over regularization. It needs a network
    of layers that answer to hyperparameters, of twice the weights, and tuning
    data that is then no longer fit to report with.

    The network is called on `[x, h]`, h being one row of hyperparameters an
    example, lambda + softplus(scale) noise. Its weights phi learn the best
    answer to all h around lambda; lambda and scale learn by the tuning data:

    ```
    loss = L_train(phi; h held constant) + L_tuning(h; phi held constant)
           - entropy sum log softplus(scale)
    ```

    in one step, in which each variable has the gradient of its own part. The
    paper takes turns, two steps of one and one of the other, after five epochs
    without, which is `warmup_steps`; here there is one step of both. What
    layers add by `add_loss`, such as `SelfTuningDense(..., decay=0)`, counts
    for the first part only.
    On tuning data the network runs in inference mode.

    `fit(x, y, tuning_data=(x, y))` trains; `evaluate` and `predict` are with
    h = lambda. Give hyperparameters another learning rate by
    `keras.optimizers.MultiOptimizer`, their paths hold "hyperparameters".

    Args:
        network: Layer or model called on `[x, h]`.
        hyperparameters: Dictionary from names to the floats that they begin
            at, in the order of h. They are not bounded: let a layer take their
            `exp` or `sigmoid`.
        scale: Positive float, softplus(scale) at first. Defaults to `0.5`.
        tune_scale: Whether the scales learn, too. Defaults to `True`.
        entropy: Non-negative float. Defaults to `1e-3`.
        warmup_steps: Integer, how many steps hyperparameters rest at first:
            until weights answer to them, their gradient leads anywhere.
            Defaults to `0`.
        seed: Integer. Defaults to `None`, at random.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: Tensor x, or a dictionary of two, "train" and "tuning".
        training: Boolean.

    Returns:
        What the network returns, or a dictionary of two.

    Raises:
        ValueError: an argument is outside its range.

    Example:

    ```python
    x, h = keras.Input((8,)), keras.Input((1,))
    y = keras_efficient.layers.SelfTuningDense(1, decay=0)([x, h])
    model = keras_efficient.models.SelfTuning(
        keras.Model([x, h], y), {"log_decay": -2.0}
    )
    model.compile("adam", "mse")
    data = np.random.normal(size=(64, 8)), np.zeros((64, 1))
    model.fit(*data, tuning_data=data)
    print(model.hyperparameter_values())
    ```

    Reference:
        - [MacKay et al., 2019](https://arxiv.org/abs/1903.03088)
    """

    def __init__(
        self,
        network,
        hyperparameters,
        scale=0.5,
        tune_scale=True,
        entropy=1e-3,
        warmup_steps=0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not hyperparameters:
            raise ValueError(
                "`hyperparameters` must be at least one. "
                f"Received: hyperparameters={hyperparameters}"
            )
        check_numbers("(0, inf)", scale=scale)
        check_numbers("[0, inf)", entropy=entropy)
        check_integers(0, warmup_steps=warmup_steps)
        self.network, self.first = network, dict(hyperparameters)
        self.scale, self.tune_scale = scale, tune_scale
        self.entropy, self.warmup_steps, self.seed = entropy, warmup_steps, seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.hyperparameters = self.add_weight(
            name="hyperparameters",
            shape=(len(self.first),),
            initializer=_constant(list(self.first.values())),
        )
        start = math.log(math.expm1(scale))
        self.scales = self.add_weight(
            name="hyperparameters_scales",
            shape=(len(self.first),),
            initializer=_constant([start] * len(self.first)),
            trainable=tune_scale,
        )
        self.steps = self.add_weight(
            name="steps", dtype="int32", initializer="zeros", trainable=False
        )

    def build(self, input_shape):
        if isinstance(input_shape, dict):
            input_shape = input_shape["train"]
        if not self.network.built:
            self.network.build([input_shape, (None, len(self.first))])

    def call(self, inputs, training=False):
        if not isinstance(inputs, dict):
            return self.network([inputs, self._rows(inputs)], training=False)
        x, tuning = inputs["train"], inputs["tuning"]
        if not training:
            return {"train": self(x), "tuning": self(tuning)}
        # First: the network forgets its losses when it is called once more.
        h = self._after_warm_up(self._rows(tuning, noise=True))
        self.steps.assign(self.steps + 1)
        with held_constant(self.network):
            tuned = self.network([tuning, h], training=False)
        h = ops.stop_gradient(self._rows(x, noise=True))
        outputs = self.network([x, h], training=True)
        return {"train": outputs, "tuning": tuned}

    def _after_warm_up(self, x):
        """Return x, which has no gradient in the first steps."""
        held = ops.stop_gradient(x)
        is_on = ops.cast(self.steps >= self.warmup_steps, x.dtype)
        return held + is_on * (x - held)

    def _rows(self, x, noise=False):
        """Return h, one row an example."""
        batch = ops.shape(keras.tree.flatten(x)[0])[0]
        shape = (batch, len(self.first))
        h = ops.broadcast_to(
            ops.cast(self.hyperparameters, self.compute_dtype), shape
        )
        if not noise:
            return h
        spread = ops.cast(ops.softplus(self.scales), self.compute_dtype)
        return h + spread * keras.random.normal(
            shape, dtype=self.compute_dtype, seed=self.seed_generator
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if not isinstance(y_pred, dict):
            return super().compute_loss(x, y, y_pred, sample_weight)
        loss = super().compute_loss(x, y["train"], y_pred["train"])
        if not training:
            return loss
        measure = keras.losses.get(self.loss)
        tuning = ops.mean(measure(y["tuning"], y_pred["tuning"]))
        loss = loss + ops.cast(tuning, loss.dtype)
        spread = ops.softplus(ops.convert_to_tensor(self.scales))
        spread = self._after_warm_up(spread)
        return loss - self.entropy * ops.sum(ops.log(spread))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if isinstance(y_pred, dict):
            x, y, y_pred = x["train"], y["train"], y_pred["train"]
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def fit(self, x, y, tuning_data, batch_size=32, shuffle=True, **kwargs):
        """Train on `(x, y)`, and tune on `tuning_data`, a pair like it.

        An epoch shows each training example once, with tuning examples that
        begin again as often as they have to. Other arguments are those of
        `keras.Model.fit`.
        """
        batches = JointBatches((x, y), tuning_data, batch_size, shuffle)
        # They are shuffled already.
        return super().fit(batches, shuffle=False, **kwargs)

    def hyperparameter_values(self):
        """Return a dictionary from names to floats, as they are now."""
        values = ops.convert_to_numpy(self.hyperparameters)
        return {name: float(v) for name, v in zip(self.first, values)}

    def get_config(self):
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "hyperparameters": dict(self.first),
            "scale": self.scale,
            "tune_scale": self.tune_scale,
            "entropy": self.entropy,
            "warmup_steps": self.warmup_steps,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = copy.deepcopy(config)  # Keras empties what it is given
        network = keras.saving.deserialize_keras_object(
            config["network"], custom_objects=custom_objects
        )
        return cls(**{**config, "network": network})


def _constant(values):
    return lambda shape, dtype=None: ops.convert_to_tensor(values, dtype)
