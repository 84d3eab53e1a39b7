import keras
from keras import ops

from keras_efficient.backend.arguments import check_numbers
from keras_efficient.ops.adam_step import finite_gradient


@keras.saving.register_keras_serializable(package="keras_efficient")
class AdaGradNorm(keras.optimizers.Optimizer):
    """Gradient descent whose step shrinks with the gradients seen so far.

    ```
    b^2 = b^2 + |g|^2              over all tensors together
    w = w - learning_rate g / b
    ```

    Its state is one number. With `keras_efficient.optimizers.AdaptiveBatch` it
    is AdAdaGradNorm. Non-finite entries of a gradient count as 0.

    (The authors' code has a number for each row of a tensor; this is the
    method of the text.)

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Defaults to `1.0`, a step of length 1 at first:
            its scale is that of the weights, not that of the gradient.
        initial_accumulator_value: Positive float, `b^2` at first. Defaults to
            `1e-6`.
        name: String. Defaults to a name of the class.
        **kwargs: Those of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: `initial_accumulator_value` is not positive.

    Example:

    ```python
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(keras_efficient.optimizers.AdaGradNorm(0.5), "mse")
    ```

    Reference:
        - [Lau et al., 2024](https://arxiv.org/abs/2402.11215)
    """

    NEEDS_ALL_GRADIENTS = True

    def __init__(
        self,
        learning_rate=1.0,
        initial_accumulator_value=1e-6,
        name=None,
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        check_numbers(
            "(0, inf)", initial_accumulator_value=initial_accumulator_value
        )
        self.initial_accumulator_value = initial_accumulator_value

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._squares = self.add_variable(
            (),
            keras.initializers.Constant(self.initial_accumulator_value),
            "float32",
            name="squares",
        )

    def _clip_gradients(self, grads):
        # Once a step, with all gradients as they are stepped with.
        grads = [finite_gradient(g) for g in super()._clip_gradients(grads)]
        squares = sum(ops.sum(ops.square(g)) for g in grads)
        self.assign_add(self._squares, squares)
        return grads

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, "float32")
        update = rate * gradient * ops.rsqrt(self._squares)
        self.assign_sub(variable, ops.cast(update, variable.dtype))

    def get_config(self):
        value = self.initial_accumulator_value
        return {**super().get_config(), "initial_accumulator_value": value}
