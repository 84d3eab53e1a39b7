import keras
from keras import ops

from keras_efficient.layers.invertible.examples import sum_per_example
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import build_sub_layer
from keras_efficient.layers.reversible.sub_layers import check_sub_layers
from keras_efficient.layers.reversible.sub_layers import first_of
from keras_efficient.layers.reversible.sub_layers import pair
from keras_efficient.layers.reversible.sub_layers import sub_layer_config
from keras_efficient.layers.reversible.sub_layers import with_sub_layers


@keras.saving.register_keras_serializable(package="keras_efficient")
class MomentumCoupling(ReversibleLayer):
    """Couple a position and a velocity: a residual block with an inverse.

    The streams are a position `x` and a velocity `v`:

    ```
    v' = m v + (1 - m) f(x)       x = x' - v'
    x' = x + v'                   v = (v' - (1 - m) f(x)) / m
    ```

    on the left, and its inverse on the right, with `m = momentum`. Unlike
    the other couplings it keeps the widths of a residual network: call it on
    `[x, keras.ops.zeros_like(x)]` and go on with the first stream.

    The inverse divides by `m`, so errors of the reconstruction grow by up to
    `1 / m` a block. Choose `momentum` close to 1 for a deep run:
    `momentum = 1 - 1 / depth` bounds the growth by 4 from a depth of 2 on,
    and by 2.9 from 10 on.

    `momentum` is a weight that is not trained: `momentum.assign(0.8)` changes
    it, and `keras_efficient.callbacks.MomentumSchedule` does so during `fit`.

    Args:
        f: A `keras.layers.Layer` that keeps the shape of a stream.
        momentum: Float between 0 and 1, what the weight is at first. Defaults
            to `0.9`.
        axis: Integer. The axis along which a single input tensor is split
            into `x` and `v`; its size must be even. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: List of two tensors of the same shape, or one tensor.
        context: Tensors for `f` if its `call` has this argument, see
            `keras_efficient.layers.ReversibleLayer`.
        mask: The same for masks.
        training: Python bool, passed on to `f`.

    Returns:
        A list of two or one tensor, as the inputs, of the same shapes.

    Raises:
        TypeError: `f` is not a Keras layer.
        ValueError: `momentum` is not between 0 and 1, or shapes do not fit.

    Example:

    ```python
    block = keras_efficient.layers.MomentumCoupling(
        keras.layers.Dense(16, activation="tanh")
    )
    x = keras.random.normal((2, 16))
    position, velocity = block([x, keras.ops.zeros_like(x)])
    ```

    Reference:
        - [Sander et al., 2021](https://arxiv.org/abs/2102.07870)
    """

    def __init__(self, f, momentum=0.9, axis=-1, **kwargs):
        super().__init__(axis=axis, **kwargs)
        check_sub_layers(f=f)
        if not 0 < momentum < 1:
            raise ValueError(
                "`momentum` must be between 0 and 1, both excluded: the "
                f"inverse divides by it. Received: momentum={momentum}"
            )
        self.f = f
        self.initial_momentum = momentum
        self.momentum = self.add_weight(
            name="momentum",
            shape=(),
            initializer=keras.initializers.Constant(momentum),
            trainable=False,
            autocast=False,
        )

    def build_sub_layers(self, shapes, shared):
        shape, _ = pair(self, shapes, equal=True)
        build_sub_layer(self, "f", shape, shape, shared)

    def couple(self, streams, evaluate):
        x, v = streams
        m = self.momentum.value
        v = m * v + (1 - m) * evaluate(self.f, x)
        return x + v, v

    def uncouple(self, streams, evaluate):
        x, v = streams
        x = x - v
        m = self.momentum.value
        return x, (v - (1 - m) * evaluate(self.f, x)) / m

    def limit(self, streams):
        """Return where `x` comes to if `f` adds nothing more from here on.

        ```
        x + m v + m^2 v + ... = x + m / (1 - m) v
        ```
        """
        x, v = streams
        m = self.momentum.value
        return x + m / (1 - m) * v

    def couple_with_log_det(self, streams, evaluate):
        return self.couple(streams, evaluate), self._log_det(streams)

    def uncouple_with_log_det(self, streams, evaluate):
        return self.uncouple(streams, evaluate), self._log_det(streams)

    def _log_det(self, streams):
        v = streams[1]
        return sum_per_example(ops.zeros_like(v) + ops.log(self.momentum.value))

    def pull_back(self, outputs, cotangents, vjp):
        """Reconstruct the inputs and pull the cotangents back to them.

        With J the Jacobian of f at x:

        ```
        c = dx' + dv'       dx = dx' + (1 - m) J^T c       dv = m c
        ```
        """
        (x, v), (d_x, d_v) = outputs, cotangents
        m = self.momentum.value
        x = x - v
        value, pullback = vjp(self.f, x)
        c = d_x + d_v
        d_x = d_x + pullback((1 - m) * c)
        return (x, (v - (1 - m) * value) / m), (d_x, m * c)

    def standardize(self, y):
        return super().standardize(first_of(y))

    def get_config(self):
        return {
            **super().get_config(),
            **sub_layer_config(f=self.f),
            "momentum": self.initial_momentum,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**with_sub_layers(config, "f"))
