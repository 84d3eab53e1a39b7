import keras
from keras import ops

from keras_efficient.optimizers.dense import dense
from keras_efficient.optimizers.optimizer_wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="keras_efficient")
class MaskedOptimizer(OptimizerWrapper):
    """Hide the gradients of masked weights from an optimizer.

    ```
    g = mask * g       of variables with a `StaticSparsity` constraint
    ```

    The constraint sets masked weights back to 0 after each step, which is all
    that matters to optimizers that treat entries one by one, such as Adam.
    `MicroAdam` chooses among the entries of a block, `LDAdam` and `Muon8bit`
    look at a matrix, `SinkGD` at rows, and all clip by a norm: to them
    gradients of masked weights are noise, which this takes away before.

    Args:
        optimizer: `keras.optimizers.Optimizer`, or what
            `keras.optimizers.get` takes. A `LossScaleOptimizer` goes around
            the wrapper.
        name: String. Defaults to a name of the class.

    Raises:
        ValueError: `optimizer` is a `LossScaleOptimizer`.

    Example:

    ```python
    sparsity = keras_efficient.constraints.StaticSparsity(0.75)
    model = keras.Sequential([
        keras.Input((64,)), keras.layers.Dense(64, kernel_constraint=sparsity)
    ])
    optimizer = keras_efficient.optimizers.MaskedOptimizer("micro_adam")
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - SPDF, [Thangarasa et al., 2023](https://arxiv.org/abs/2303.10464)
    """

    def apply(self, grads, trainable_variables=None):
        variables = self._known(trainable_variables)
        masked = map(_masked, grads, variables)
        self.inner_optimizer.apply(list(masked), variables)


def _masked(gradient, variable):
    mask = getattr(variable.constraint, "mask", None)
    if gradient is None or mask is None:
        return gradient
    gradient = dense(gradient)
    zeros = ops.zeros_like(gradient)
    return ops.where(mask(variable.shape), gradient, zeros)
