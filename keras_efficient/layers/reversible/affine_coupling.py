import keras
from keras import ops

from keras_efficient.layers.invertible.examples import sum_per_example
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import build_sub_layer
from keras_efficient.layers.reversible.sub_layers import check_sub_layers
from keras_efficient.layers.reversible.sub_layers import first_of
from keras_efficient.layers.reversible.sub_layers import half_step_shape
from keras_efficient.layers.reversible.sub_layers import pair
from keras_efficient.layers.reversible.sub_layers import sub_layer_config
from keras_efficient.layers.reversible.sub_layers import with_sub_layers

SCALES = ("clamp", "sigmoid", "exp")


@keras.saving.register_keras_serializable(package="keras_efficient")
class AffineCoupling(ReversibleLayer):
    """Couple two streams by a scale and a shift, invertibly.

    `f` and `g` return a raw scale `u` and a shift `t`, side by side along
    `axis`. The layer computes

    ```
    u1, t1 = f(x2)                    u2, t2 = g(y1)
    y1 = s(u1) x1 + t1                x2 = (y2 - t2) / s(u2)
    u2, t2 = g(y1)                    u1, t1 = f(x2)
    y2 = s(u2) x2 + t2                x1 = (y1 - t1) / s(u1)
    ```

    on the left, and its inverse on the right. Without `g` it is the half step
    with a swap, `y1 = x2, y2 = s(u1) x1 + t1`. The scale is one of

    ```
    "clamp":    log s(u) = u / sqrt(1 + (u / c)^2),    c = clamp
    "sigmoid":  s(u) = 1 / (1 + exp(-u - 2))
    "exp":      s(u) = exp(u)
    ```

    The first is close to `exp(u)` where `u` is small, and between `exp(-c)`
    and `exp(c)` always: a rounding error grows by at most `exp(c)` a half step
    of the reconstruction. The others may come as close to 0 as they like, and
    the inverse divides by them.

    Args:
        f: A `keras.layers.Layer` from the second stream to twice the channels
            of the first.
        g: A `keras.layers.Layer` from the first stream to twice the channels
            of the second. Defaults to `None`, the half step with a swap.
        clamp: Float above 0, the bound of the logarithm of the scale, for
            `scale="clamp"`. Defaults to `1.0`.
        axis: Integer. The axis along which a single input tensor is split
            into two streams, and what `f` and `g` return into scale and
            shift. Defaults to `-1`.
        scale: `"clamp"`, `"sigmoid"` or `"exp"`. Defaults to `"clamp"`.
        split: Where to split a single input tensor, see
            `keras_efficient.layers.AdditiveCoupling`. Defaults to `None`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: One tensor, or a list of two.
        context: Tensors for those of `f` and `g` whose `call` has this
            argument, see `keras_efficient.layers.ReversibleLayer`.
        mask: The same for masks.
        training: Python bool, passed on to `f` and `g`.

    Returns:
        One tensor or a list of two, as the inputs, of the same shapes.

    Raises:
        TypeError: `f` or `g` is not a Keras layer.
        ValueError: `clamp` is not positive, `scale` none of its choices, the
            input cannot be split, or `f`
            or `g` does not return twice the channels of its stream.

    Example:

    ```python
    coupling = keras_efficient.layers.AffineCoupling(
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(16, activation="tanh"),
    )
    x = keras.random.normal((2, 16))
    x_again = coupling.inverse(coupling(x))
    ```

    Reference:
        - [Dinh et al., 2017](https://arxiv.org/abs/1605.08803)
    """

    def __init__(
        self,
        f,
        g=None,
        clamp=1.0,
        axis=-1,
        scale="clamp",
        split=None,
        **kwargs,
    ):
        super().__init__(axis=axis, **kwargs)
        check_sub_layers(f=f, **({} if g is None else {"g": g}))
        if not clamp > 0:
            raise ValueError(
                f"`clamp` must be above 0. Received: clamp={clamp}"
            )
        if scale not in SCALES:
            raise ValueError(
                f"`scale` must be one of {SCALES}. Received: scale={scale!r}"
            )
        self.f = f
        self.g = g
        self.clamp = clamp
        self.scale = scale
        self.split = split

    def build_sub_layers(self, shapes, shared):
        first, second = pair(self, shapes)
        build_sub_layer(self, "f", second, self._twice(first), shared)
        if self.g is not None:
            build_sub_layer(self, "g", first, self._twice(second), shared)

    def couple(self, streams, evaluate):
        return self._couple(streams, evaluate)[0]

    def uncouple(self, streams, evaluate):
        return self._uncouple(streams, evaluate)[0]

    def couple_with_log_det(self, streams, evaluate):
        outputs, logs = self._couple(streams, evaluate)
        return outputs, sum(map(sum_per_example, logs))

    def uncouple_with_log_det(self, streams, evaluate):
        inputs, logs = self._uncouple(streams, evaluate)
        return inputs, sum(map(sum_per_example, logs))

    def _couple(self, streams, evaluate):
        """Return the outputs, and the logarithms of the scales."""
        x1, x2 = streams
        log1, t = self._halves(evaluate(self.f, x2))
        y1 = ops.exp(log1) * x1 + t
        if self.g is None:
            return (x2, y1), (log1,)
        log2, t = self._halves(evaluate(self.g, y1))
        y2 = ops.exp(log2) * x2 + t
        return (y1, y2), (log1, log2)

    def _uncouple(self, streams, evaluate):
        y1, y2 = streams
        if self.g is None:
            log1, t = self._halves(evaluate(self.f, y1))
            return ((y2 - t) / ops.exp(log1), y1), (log1,)
        log2, t = self._halves(evaluate(self.g, y1))
        x2 = (y2 - t) / ops.exp(log2)
        log1, t = self._halves(evaluate(self.f, x2))
        x1 = (y1 - t) / ops.exp(log1)
        return (x1, x2), (log1, log2)

    def pull_back(self, outputs, cotangents, vjp):
        """Reconstruct the inputs and pull the cotangents back to them.

        With J the Jacobian of a function at the point of its evaluation and
        s' the derivative of the scale by u:

        ```
        dx2 = s2 dy2        d1 = dy1 + J_g(y1)^T (s2' x2 dy2, dy2)
        dx1 = s1 d1         dx2 += J_f(x2)^T (s1' x1 d1, d1)
        ```
        """
        (y1, y2), (d1, d2) = outputs, cotangents
        if self.g is None:
            x1, d_x1, d_x2 = self._pull_half(self.f, y1, y2, d2, vjp)
            return (x1, y1), (d_x1, d1 + d_x2)
        x2, d2, d_y1 = self._pull_half(self.g, y1, y2, d2, vjp)
        x1, d1, d_x2 = self._pull_half(self.f, x2, y1, d1 + d_y1, vjp)
        return (x1, x2), (d1, d2 + d_x2)

    def _pull_half(self, layer, a, y, d_y, vjp):
        """Undo `y = s(u) x + t`, `(u, t) = layer(a)`: `x`, and d for x, a."""
        value, pullback = vjp(layer, a)
        u, t = ops.split(value, 2, axis=self.axis)
        log, slope = self._log_scale(u)
        s = ops.exp(log)
        x = (y - t) / s
        d_value = ops.concatenate([s * slope * x * d_y, d_y], axis=self.axis)
        return x, s * d_y, pullback(d_value)

    def _log_scale(self, u):
        """Return `log s(u)` and its derivative."""
        if self.scale == "exp":
            return u, ops.ones_like(u)
        if self.scale == "sigmoid":
            return ops.log_sigmoid(u + 2), ops.sigmoid(-u - 2)
        shrink = ops.rsqrt(1 + ops.square(u / self.clamp))
        return u * shrink, shrink**3

    def _halves(self, value):
        """Return the logarithm of the scale, and the shift."""
        u, t = ops.split(value, 2, axis=self.axis)
        return self._log_scale(u)[0], t

    def standardize(self, y):
        return super().standardize(first_of(y))

    def compute_output_shape(self, inputs_shape, context_shape=None):
        return half_step_shape(self, inputs_shape)

    def _twice(self, shape):
        axis = self.axis % len(shape)
        return (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])

    def get_config(self):
        return {
            **super().get_config(),
            **sub_layer_config(f=self.f, g=self.g),
            "clamp": self.clamp,
            "scale": self.scale,
            "split": self.split,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**with_sub_layers(config, "f", "g"))
