import math

import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.optimizers.apply_if import apply_if
from keras_efficient.optimizers.dense import dense
from keras_efficient.optimizers.optimizer_wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="keras_efficient")
class AdaptiveBatch(OptimizerWrapper):
    """Let the noise of the gradient choose the batch size, as training goes.

    Gradients of `M` micro-batches are averaged for each step of an optimizer,
    and `M` grows until the noise in their mean is small against the mean:

    ```
    g = mean of g_1 ... g_M             S = sum_m |g_m - g|^2 / (M - 1)
    noise  = decay noise  + (1 - decay) S
    signal = decay signal + (1 - decay) (|g|^2 - S / M)
    M = min(max_micro_batches, max(M, ceil(noise / (eta^2 signal))))
    ```

    This is the norm test of AdAdaGrad. Two things are ours. `|g|^2` alone is
    larger than the square of the true gradient by `S / M`, most where noise
    dominates, and would ask for batches many times too small: it is
    subtracted. And as that difference is often negative for a single step,
    both are averaged before they are divided; `M` is first tested after
    `1 / (1 - decay)` steps, and at most doubled each time.

    `M` is a variable: it changes in the middle of an epoch, and nothing is
    traced anew. It costs one norm of the gradient for each micro-batch, and 4
    bytes a parameter for their sum. Micro-batches that are left at the end of
    an epoch go into the first step of the next. The batch size of `fit` is
    that of a micro-batch; so are statistics of batch normalizations.
    Schedules of the learning rate count the steps of the optimizer.

    Args:
        optimizer: `keras.optimizers.Optimizer`, or what
            `keras.optimizers.get` takes. A `LossScaleOptimizer` goes around
            the wrapper.
        eta: Positive float, the size of the noise that is borne; smaller
            values make larger batches. Defaults to `0.5`.
        micro_batches: Integer, at least 2: `M` at first. Defaults to `2`.
        max_micro_batches: Integer, of `M`. Defaults to `64`.
        test_interval: Integer, the number of steps between tests. Defaults to
            `1`.
        decay: Float in [0, 1), of the averages. Defaults to `0.9`.
        power_of_two: Boolean, whether `M` is rounded up to one. Defaults to
            `False`.
        schedule: Function from the number of micro-batches so far, an int32
            tensor, to `M`, which then is not tested: for plain ramps, such as
            `lambda n: 2 + n // 1000`. It may be 1. Defaults to `None`.
        name: String. Defaults to a name of the class.

    Attributes:
        micro_batches: int32 variable `M`, once it is built. It may be
            assigned.
        noise_scale: Tensor, `noise / signal`: the batch size, in
            micro-batches, at which noise and signal are equal.

    Raises:
        ValueError: an argument is outside its range, or `optimizer`
            accumulates gradients itself.

    Example:

    ```python
    optimizer = keras_efficient.optimizers.AdaptiveBatch(
        keras.optimizers.Adagrad(0.05)
    )
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss="mse")
    log = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(
            micro_batches=int(optimizer.micro_batches)
        )
    )
    x = keras.random.normal((64, 8))
    model.fit(x, x[:, :1], batch_size=4, callbacks=[log], verbose=0)
    ```

    Reference:
        - [Lau et al., 2024](https://arxiv.org/abs/2402.11215)
        - [McCandlish et al., 2018](https://arxiv.org/abs/1812.06162)
    """

    NEEDS_ALL_GRADIENTS = True

    def __init__(
        self,
        optimizer,
        eta=0.5,
        micro_batches=2,
        max_micro_batches=64,
        test_interval=1,
        decay=0.9,
        power_of_two=False,
        schedule=None,
        name=None,
    ):
        super().__init__(optimizer, name)
        check_numbers("(0, inf)", eta=eta)
        check_numbers("[0, 1)", decay=decay)
        check_integers(1, test_interval=test_interval)
        # The noise is seen in their differences.
        check_integers(2, micro_batches=micro_batches)
        check_integers(micro_batches, max_micro_batches=max_micro_batches)
        if self.inner_optimizer.gradient_accumulation_steps:
            raise ValueError(
                "`gradient_accumulation_steps` of the optimizer must be "
                "`None`: `AdaptiveBatch` accumulates. Received: "
                f"{self.inner_optimizer.gradient_accumulation_steps}"
            )
        self.eta = eta
        self.first_micro_batches = micro_batches
        self.max_micro_batches = max_micro_batches
        self.test_interval = test_interval
        self.decay = decay
        self.power_of_two = power_of_two
        self.schedule = schedule

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        constant = keras.initializers.Constant(self.first_micro_batches)
        self.micro_batches = self.add_variable(
            (), constant, "int32", name="micro_batches"
        )
        self._count = self.add_variable((), "zeros", "int32", name="count")
        self._squares, self._noise, self._signal = (
            self.add_variable((), "zeros", "float32", name=name)
            for name in ("squares", "noise", "signal")
        )
        self._sums = [
            self.add_variable(
                variable.shape,
                "zeros",
                "float32",
                layout=getattr(variable, "_layout", None),
                name=f"sum_{i}",
            )
            for i, variable in enumerate(variables)
        ]

    @property
    def noise_scale(self):
        noise, signal = map(ops.convert_to_tensor, (self._noise, self._signal))
        return noise / ops.maximum(signal, 1e-30)

    def apply(self, grads, trainable_variables=None):
        """Take in a micro-batch; with the last of a batch, step."""
        variables = self._known(trainable_variables)
        if self.schedule is not None:
            number = ops.cast(self._iterations, "int32")
            self.micro_batches.assign(
                ops.clip(
                    ops.cast(self.schedule(number), "int32"),
                    1,
                    self.max_micro_batches,
                )
            )
        count = self._count + 1
        squares = ops.convert_to_tensor(self._squares)
        sums = []
        for gradient, variable in zip(grads, variables, strict=True):
            total = None
            if gradient is not None:
                gradient = ops.cast(dense(gradient), "float32")
                squares = squares + ops.sum(ops.square(gradient))
                total = self._sum(variable) + gradient
            sums.append(total)
        is_last = count >= self.micro_batches
        self._measure(is_last, count, squares, sums)
        factor = 1.0 / ops.cast(count, "float32")
        apply_if(
            is_last,
            self.inner_optimizer,
            lambda: [x if x is None else factor * x for x in sums],
            variables,
        )
        self._count.assign(ops.where(is_last, 0, count))
        self._squares.assign(ops.where(is_last, 0.0, squares))
        for variable, total in zip(variables, sums):
            if total is not None:
                total = ops.where(is_last, ops.zeros_like(total), total)
                self._sum(variable).assign(total)
        self._iterations.assign_add(1)

    def _sum(self, variable):
        return self._sums[self._get_variable_index(variable)]

    def _measure(self, is_last, count, squares, sums):
        """Move the averages of noise and signal, and choose `M`."""
        state = self._noise, self._signal, self.micro_batches
        old = [ops.convert_to_tensor(x) for x in state]
        steps = ops.cast(self.inner_optimizer.iterations, "int32") + 1

        def measure():
            n = ops.cast(count, "float32")
            total = sum(ops.sum(ops.square(x)) for x in sums if x is not None)
            square = total / ops.square(n)
            spread = (squares - n * square) / ops.maximum(n - 1, 1.0)
            # What is not finite would stay in the averages for ever.
            is_fine = ops.isfinite(square + spread)
            noise, signal = (
                ops.where(is_fine, self.decay * x + (1 - self.decay) * new, x)
                for x, new in zip(old, (spread, square - spread / n))
            )
            return noise, signal, self._chosen(noise, signal, old[2], steps)

        found = ops.cond(is_last, measure, lambda: tuple(old))
        for variable, value in zip(state, found):
            variable.assign(value)

    def _chosen(self, noise, signal, old, steps):
        if self.schedule is not None:
            return old
        wanted = noise / (self.eta**2 * ops.maximum(signal, 1e-30))
        wanted = ops.clip(wanted, 1.0, self.max_micro_batches)
        if self.power_of_two:
            wanted = 2.0 ** ops.ceil(ops.log2(wanted))
        wanted = ops.cast(ops.ceil(wanted), "int32")
        wanted = ops.minimum(
            wanted, ops.minimum(2 * old, self.max_micro_batches)
        )
        first = math.ceil(1 / (1 - self.decay) - 1e-9)
        is_test = (steps >= first) & (steps % self.test_interval == 0)
        return ops.where(is_test, ops.maximum(old, wanted), old)

    def get_config(self):
        names = ("eta", "max_micro_batches", "test_interval", "decay")
        config = {name: getattr(self, name) for name in names}
        schedule = self.schedule
        return {
            **super().get_config(),
            **config,
            "micro_batches": self.first_micro_batches,
            "power_of_two": self.power_of_two,
            "schedule": keras.saving.serialize_keras_object(schedule),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        schedule = config.pop("schedule", None)
        deserialize = keras.saving.deserialize_keras_object
        config["schedule"] = deserialize(schedule, custom_objects)
        return super().from_config(config, custom_objects)
