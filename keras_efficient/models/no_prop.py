import copy
import math

import keras
import numpy as np
from keras import ops

from keras_efficient import backend
from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.layers import Recompute


@keras.saving.register_keras_serializable(package="keras_efficient")
class NoProp(keras.Model):
    """Train blocks each by itself, without back-propagation between them.

    What a step keeps does not grow with the number of blocks. It is not as
    accurate as back-propagation beyond small tasks, and answers are drawn at
    random.

    Each block learns to take the noise from an embedding u_y of the label, at
    a level of its own, seeing the input x; u_y is row y of a matrix W that is
    learned. With abar_t = cos^2(pi/2 (1 - t/(T+1))), t = 0 ... T, and
    snr_t = abar_t / (1 - abar_t), the loss of block t is

    ```
    z_{t-1} = sqrt(abar_{t-1}) u_y + sqrt(1 - abar_{t-1}) noise
    u_t     = softmax(f_t([x, z_{t-1}])) W
    loss_t  = T eta / 2 (snr_t - snr_{t-1}) |u_t - u_y|^2
    ```

    and a dense layer `out` learns by the cross-entropy of out(z_T), z_T drawn
    likewise. All are summed: gradients of one block with respect to another
    are exactly 0. As abar_0 = 0, the divergence of z_0 from N(0, I) is 0. In
    inference z_0 is noise, and

    ```
    z_t = a_t u_t + b_t z_{t-1} + sqrt(c_t) noise,   logits = out(z_T)
    alpha = abar_{t-1} / abar_t
    a_t = sqrt(abar_t) (1 - alpha) / (1 - abar_{t-1})
    b_t = sqrt(alpha) (1 - abar_t) / (1 - abar_{t-1})
    c_t = (1 - abar_t) (1 - alpha) / (1 - abar_{t-1})
    ```

    which with u_t = u_y gives z_t the distribution that block t+1 was trained
    on. The schedule is ours, of a form that leaves snr_T finite; the paper
    speaks of a fixed cosine. Code that others published has schedules that
    fall with t, which rewards errors, and leaves out b and c.

    Compile it without a loss. In training there is no forward pass through all
    blocks, hence no metrics but the loss: `validation_data` has them. What
    blocks add by `add_loss` is left out; regularizers of their weights count.

    Args:
        blocks: List of layers, called on a list `[x, z]`, that return logits
            of shape `(batch, num_classes)`.
        num_classes: Integer above 1.
        embedding_dim: Positive integer, the size of z. Defaults to `None`,
            `num_classes`, with the unit matrix as the first W.
        eta: Positive float. Defaults to `0.1`.
        recompute: Whether to run each block a second time in its backward
            pass, rather than keep what it computes: a third more time, and
            memory that does not grow with depth. Defaults to `True`.
        seed: Integer. Defaults to `None`, at random.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: Tensor of shape `(batch, ...)`.
        training: Boolean. In training mode the result is an empty tensor.

    Returns:
        Logits of shape `(batch, num_classes)`.

    Raises:
        ValueError: an argument is outside its range, or, in the first step,
            `compile` was given a loss.

    Example:

    ```python
    def block():
        x, z = keras.Input((8,)), keras.Input((3,))
        y = keras.layers.Concatenate()([x, z])
        y = keras.layers.Dense(16, "relu")(y)
        return keras.Model([x, z], keras.layers.Dense(3)(y))

    model = keras_efficient.models.NoProp([block() for _ in range(4)], 3)
    model.compile("adamw", metrics=["accuracy"])
    x, y = np.random.normal(size=(64, 8)), np.arange(64) % 3
    model.fit(x, y, validation_data=(x, y))
    ```

    Reference:
        - [Li et al., 2025](https://arxiv.org/abs/2503.24322)
    """

    def __init__(
        self,
        blocks,
        num_classes,
        embedding_dim=None,
        eta=0.1,
        recompute=True,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        dim = num_classes if embedding_dim is None else embedding_dim
        if not blocks:
            raise ValueError(
                f"`blocks` must be at least one layer. Received: {blocks}"
            )
        check_integers(2, num_classes=num_classes)
        check_integers(1, embedding_dim=dim)
        check_numbers("(0, inf)", eta=eta)
        self.blocks, self.num_classes, self.eta = list(blocks), num_classes, eta
        self.embedding_dim, self.recompute, self.seed = dim, recompute, seed
        # Not by `setattr`, which would track the blocks once more.
        runs = [Recompute(b) for b in blocks] if recompute else list(blocks)
        self.__dict__["_runs"] = runs
        self.out = keras.layers.Dense(num_classes, name="out")
        self.seed_generator = keras.random.SeedGenerator(seed)
        steps = len(blocks)
        t = np.arange(steps + 1)
        self._abar = np.cos(np.pi / 2 * (1 - t / (steps + 1))) ** 2
        self._abar[0] = 0.0

    def build(self, input_shape):
        z = (input_shape[0], self.embedding_dim)
        for block in self.blocks:
            if not block.built:
                block.build([input_shape, z])
        self.out.build(z)
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_classes, self.embedding_dim),
            initializer="identity"
            if self.embedding_dim == self.num_classes
            else "orthogonal",
        )

    def call(self, inputs, training=False):
        batch = ops.shape(inputs)[0]
        if training:
            return ops.zeros((batch, 0), self.compute_dtype)
        z = self._noise(batch)
        for t, run in enumerate(self._runs, 1):
            a, b, c = self._coefficients(t)
            z = a * self._denoised(run, inputs, z, False) + b * z
            z = z + c**0.5 * self._noise(batch)
        return self.out(z)

    def _noise(self, batch):
        shape = (batch, self.embedding_dim)
        return keras.random.normal(
            shape, dtype=self.compute_dtype, seed=self.seed_generator
        )

    def _coefficients(self, t):
        """Return (a_t, b_t, c_t), floats."""
        before, after = self._abar[t - 1], self._abar[t]
        alpha = before / after
        a = math.sqrt(after) * (1 - alpha) / (1 - before)
        b = math.sqrt(alpha) * (1 - after) / (1 - before)
        return a, b, (1 - after) * (1 - alpha) / (1 - before)

    def _denoised(self, run, x, z, training):
        p = ops.softmax(run([x, z], training=training), axis=-1)
        return ops.matmul(p, ops.cast(self.embeddings, p.dtype))

    def _noisy(self, u, t):
        """Draw z_t of the embedding u; no gradient goes through it."""
        level = float(self._abar[t])
        noise = self._noise(ops.shape(u)[0])
        return ops.stop_gradient(level**0.5 * u + (1 - level) ** 0.5 * noise)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if self.loss is not None:
            raise ValueError(
                "`NoProp` has losses of its own: compile it without one. "
                f"Received: loss={self.loss!r}"
            )
        total = sum(self.losses)
        labels = ops.cast(ops.reshape(y, (-1,)), "int32")
        if training:
            each = self._each_loss(x, labels)
        else:
            each = _cross_entropy(labels, y_pred)
        if sample_weight is not None:
            each = each * ops.cast(
                ops.reshape(sample_weight, (-1,)), each.dtype
            )
        return ops.mean(each) + total

    def _each_loss(self, x, labels):
        """Return the losses of all blocks and of `out`, summed, by sample."""
        u = ops.cast(
            ops.take(self.embeddings, labels, axis=0), self.compute_dtype
        )
        steps = len(self._runs)
        logits = self.out(_through(self._noisy(u, steps), u, self._abar[-1]))
        each = _cross_entropy(labels, logits)
        for t, run in enumerate(self._runs, 1):
            z, each = _in_turn(self._noisy(u, t - 1), each)
            found = self._denoised(run, x, z, True)
            error = ops.cast(found, "float32") - ops.cast(u, "float32")
            snr, before = (a / (1 - a) for a in self._abar[[t, t - 1]])
            weight = float(steps * self.eta / 2 * (snr - before))
            each = each + weight * ops.sum(ops.square(error), axis=-1)
        return each

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if y_pred.shape[-1] == 0:  # in training
            return {"loss": self.metrics[0].result()}
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self):
        # Metrics are built when they are asked for the first time.
        if all(getattr(metric, "built", True) for metric in self.metrics):
            return super().get_metrics_result()
        return {"loss": self.metrics[0].result()}

    def get_config(self):
        return {
            **super().get_config(),
            "blocks": [
                keras.saving.serialize_keras_object(b) for b in self.blocks
            ],
            "num_classes": self.num_classes,
            "embedding_dim": self.embedding_dim,
            "eta": self.eta,
            "recompute": self.recompute,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = copy.deepcopy(config)  # Keras empties what it is given
        config["blocks"] = [
            keras.saving.deserialize_keras_object(
                b, custom_objects=custom_objects
            )
            for b in config["blocks"]
        ]
        return cls(**config)


def _wait(*tensors):
    """Give tensors back when all of them are there."""
    return tuple(backend.segment(lambda *args: args, *tensors))


# One block after the other, forwards and backwards: compilers would run those
# that do not wait for each other at once, and keep what all of them compute.
_in_turn = backend.custom_vjp(
    lambda z, each: (_wait(z, each), ()),
    lambda _, gradients: _wait(*gradients),
)


def _through(z, u, level):
    """Let the gradient at z, drawn from the embedding u, reach u."""
    return z + level**0.5 * (u - ops.stop_gradient(u))


def _cross_entropy(labels, logits):
    return keras.losses.sparse_categorical_crossentropy(
        labels, ops.cast(logits, "float32"), from_logits=True
    )
