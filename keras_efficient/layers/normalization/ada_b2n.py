import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.layers.normalization.base_normalization import (
    BaseNormalization,
)
from keras_efficient.layers.normalization.base_normalization import moments
from keras_efficient.layers.normalization.base_normalization import places


@keras.saving.register_keras_serializable(package="keras_efficient")
class AdaB2N(BaseNormalization):
    """Normalize batches of old and new tasks with a weight for each task.

    It is for continual learning with replay, where most of a batch is of the
    new task; it does not choose what is replayed, and saves no memory.

    With n_t examples of task t in the batch and a learned phi_t,

    ```
    p_t  = (exp(phi_t) + n_t) / sum of the same over the tasks in the batch
    mean = sum_i w_i mean(x_i),    w_i = p_task(i) / n_task(i)
    var  = sum_i w_i mean((x_i - mean)^2)
    ```

    and moving statistics take part eta of them in a step, where with
    m = 1 - `momentum`

    ```
    eta_1 = m^kappa      eta_k = eta_{k-1} / (eta_{k-1} + (1 - m)^kappa)
    ```

    so that `kappa=1` is BatchNormalization's average and `kappa=0` that of all
    steps so far. The layer adds `factor` times the mean squares of the batch's
    statistics less the moving ones to the loss, which trains phi, too.

    Args:
        num_tasks: Integer.
        kappa: Float from 0 to 1. Defaults to `0.5`.
        factor: Float, of the added loss. Defaults to `1.0`.
        axis: Integer, that of the channels. Defaults to `-1`.
        epsilon: Float. Defaults to `1e-3`.
        momentum: Float. Defaults to `0.9`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: List of a tensor of shape `(batch, ..., channels)` and the
            number of each example's task, integers of shape `(batch,)`.
        training: Python bool.

    Returns:
        Tensor of the shape of the first.

    Raises:
        ValueError: `kappa` is outside its range, or there is one input only.

    Example:

    ```python
    layer = keras_efficient.layers.AdaB2N(num_tasks=3)
    x = keras.random.normal((4, 8, 8, 16))
    tasks = keras.ops.convert_to_tensor([0, 0, 1, 2])
    y = layer([x, tasks], training=True)
    ```

    Deviation: the sum of p is over the tasks that are in the batch, so that
    the weights of an average add up to one; the reference sums over all tasks
    so far.

    Reference:
        - [Lyu et al., 2023](https://arxiv.org/abs/2310.08855)
    """

    def __init__(
        self,
        num_tasks,
        kappa=0.5,
        factor=1.0,
        axis=-1,
        epsilon=1e-3,
        momentum=0.9,
        **kwargs,
    ):
        check_integers(1, num_tasks=num_tasks)
        check_numbers("[0, 1]", kappa=kappa)
        check_numbers("[0, inf)", factor=factor)
        super().__init__(axis, epsilon, momentum, **kwargs)
        self.num_tasks = num_tasks
        self.kappa = kappa
        self.factor = factor

    def build(self, input_shape):
        if len(input_shape) != 2 or not isinstance(
            input_shape[0], (list, tuple)
        ):
            raise ValueError(
                f"Layer '{self.name}' takes a list `[x, task]` of features and "
                f"numbers of tasks. Received: input_shape={input_shape}"
            )
        super().build(input_shape[0])

    def build_statistics(self):
        self.phi = self.add_weight(
            name="phi", shape=(self.num_tasks,), initializer="zeros"
        )
        self.moving_mean = self.channel_state("moving_mean", "zeros")
        self.moving_variance = self.channel_state("moving_variance", "ones")
        self.eta = self.add_weight(
            name="eta",
            shape=(),
            initializer=keras.initializers.Constant(
                (1.0 - self.momentum) ** self.kappa
            ),
            trainable=False,
            autocast=False,
        )

    def call(self, inputs, training=None):
        x, tasks = inputs
        last = self.axis in (-1, len(x.shape) - 1)
        x = x if last else ops.moveaxis(x, self.axis, -1)
        y = self.normalize(x, tasks, training)
        return y if last else ops.moveaxis(y, -1, self.axis)

    def normalize(self, x, tasks, training):
        if not training:
            return self.affine(
                x,
                ops.convert_to_tensor(self.moving_mean),
                ops.convert_to_tensor(self.moving_variance),
            )
        w = ops.reshape(self._weights(tasks), (-1,) + (1,) * (len(x.shape) - 1))
        mean, _ = moments(x, places(x))
        mean = ops.sum(w * mean, 0, keepdims=True)
        squares, _ = moments(
            ops.square(ops.cast(x, mean.dtype) - mean), places(x)
        )
        variance = ops.sum(w * squares, 0, keepdims=True)
        gap = 0.0
        eta = ops.convert_to_tensor(self.eta)
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            value = ops.reshape(value, (self.channels,))
            moved = moving + eta * (ops.stop_gradient(value) - moving)
            gap = gap + ops.mean(ops.square(value - moved))
            moving.assign(moved)
        self.eta.assign(eta / (eta + self.momentum**self.kappa))
        self.add_loss(self.factor * gap)
        return self.affine(x, mean, variance)

    def _weights(self, tasks):
        """The part of each example in the average."""
        tasks = ops.one_hot(tasks, self.num_tasks, dtype="float32")
        counts = ops.sum(tasks, 0)
        strength = ops.exp(ops.cast(self.phi, "float32")) + counts
        p = ops.where(counts > 0, strength, 0.0)
        p = p / ops.sum(p) / ops.maximum(counts, 1.0)
        return ops.sum(tasks * p, -1)

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def compute_mask(self, inputs, previous_mask):
        return previous_mask and previous_mask[0]

    def get_config(self):
        return {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "kappa": self.kappa,
            "factor": self.factor,
        }
