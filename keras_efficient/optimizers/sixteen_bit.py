import functools

import keras
from keras import ops

from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.optimizers.batched_step import batches
from keras_efficient.optimizers.float32_view import Float32View
from keras_efficient.optimizers.float32_view import opened
from keras_efficient.optimizers.float32_weights import Float32Weights
from keras_efficient.optimizers.float32_weights import float32_gradients
from keras_efficient.optimizers.optimizer_wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="keras_efficient")
class SixteenBit(OptimizerWrapper):
    """Let any optimizer train bfloat16 and float16 weights as if in float32.

    A model whose variables have 16 bits, `dtype="bfloat16"` for instance, takes
    half the memory. But a step of 0.00002 on a weight of 0.1 is less than half
    of what lies between two numbers of bfloat16, and is rounded away; and
    Keras' Adam computes in the dtype of the variable, where its decay of 0.999
    is 1, so that nothing moves at all. This wrapper hands an optimizer float32
    values of such variables, and rounds what it makes of them:

    - `"compensated"`: one int8 a weight holds the next 8 bits of the float32
      value. Weights move as those in float32 do.
    - `"stochastic"`: up or down at random, to the right number on average. This
      takes no memory.
    - `"nearest"`: as a cast does. Small steps are lost.

    Moments, averages, accumulated gradients, weight decay, clipping and
    unscaling are all in float32. Variables of other dtypes are left alone.
    Weights may be assigned at any time: a correction that belongs to another
    weight moves it by at most half a step of its 16 bits. On PyTorch the
    float32 values are made and dropped some variables at a time.

    Optimizers of this package need no wrapper: they have `weight_rounding`
    themselves, and do it in their kernels.

    Args:
        optimizer: `keras.optimizers.Optimizer`, or what
            `keras.optimizers.get` takes. It belongs to the wrapper from then
            on: change its options before. A `LossScaleOptimizer` goes around
            the wrapper; in a `MultiOptimizer`, wrap the optimizers in it.
        weight_rounding: `"compensated"`, `"stochastic"` or `"nearest"`.
            Defaults to `"compensated"`.
        name: String. Defaults to a name of the class.

    Raises:
        ValueError: an argument is outside its range, or `optimizer` is a
            wrapper itself.

    Example:

    ```python
    keras.config.set_dtype_policy("bfloat16")
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    keras.config.set_dtype_policy("float32")
    optimizer = keras_efficient.optimizers.SixteenBit(
        keras.optimizers.AdamW(learning_rate=2e-5)
    )
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - FlashOptim, [arXiv 2602.23349](https://arxiv.org/abs/2602.23349)
    """

    REFUSED = (
        keras.optimizers.LossScaleOptimizer,
        keras.optimizers.MultiOptimizer,
    )
    ADVICE = (
        "Put `LossScaleOptimizer` around `SixteenBit`, and `SixteenBit` around "
        "each of those in a `MultiOptimizer`."
    )

    def __init__(self, optimizer, weight_rounding="compensated", name=None):
        super().__init__(optimizer, name)
        self.weight_rounding = weight_rounding
        self._weights = Float32Weights(weight_rounding)
        self._views = {}

    def build(self, variables):
        if self.built:
            return
        strategy = getattr(self, "_distribution_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "`SixteenBit` cannot step on variables that are spread over "
                "replicas by `tf.distribute`. Received: a strategy of "
                f"{strategy.num_replicas_in_sync} replicas. Use an optimizer "
                "of this package, with its own `weight_rounding`."
            )
        keras.optimizers.Optimizer.build(self, variables)
        self._weights.build(self, variables)
        views = {}
        for index, variable in enumerate(variables):
            if is_16_bit(variable):
                views[self._var_key(variable)] = Float32View(
                    variable,
                    functools.partial(self._weights.read, index, variable),
                    functools.partial(self._write, index, variable),
                )
        # Not by `setattr`, which would track the views for checkpoints.
        self.__dict__["_views"] = views
        inner = self.inner_optimizer
        excluded = getattr(inner, "_exclude_from_weight_decay", set())
        excluded.update(
            inner._var_key(view)
            for key, view in views.items()
            if key in excluded
        )
        # The decay is a part of the step: a weight is rounded once.
        inner.__dict__["_apply_weight_decay"] = lambda variables: None
        inner.__dict__["_backend_update_step"] = self._update_in_turn
        inner.build(self._as_float32(variables))

    def _write(self, index, variable, x):
        step = ops.cast(self.inner_optimizer.iterations + 1, "int32")
        self._weights.write(self, index, variable, x, step)

    def _as_float32(self, variables):
        return [self._views.get(self._var_key(v), v) for v in variables]

    def apply(self, grads, trainable_variables=None):
        variables = self._known(trainable_variables)
        self.inner_optimizer.apply(
            float32_gradients(self.inner_optimizer, grads),
            self._as_float32(variables),
        )

    def _update_in_turn(self, grads, variables, learning_rate):
        """Decay and step, with views of some variables at a time."""
        inner = self.inner_optimizer
        for rows in batches(list(zip(grads, variables))):
            grads, variables = zip(*rows)
            grads = [
                ops.cast(g, "float32") if isinstance(v, Float32View) else g
                for g, v in rows
            ]
            with opened(variables):
                type(inner)._apply_weight_decay(inner, variables)
                type(inner)._backend_update_step(
                    inner, grads, variables, learning_rate
                )

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(
            self._as_float32(var_list)
        )

    def get_config(self):
        config = {"weight_rounding": self.weight_rounding}
        return {**super().get_config(), **config}
