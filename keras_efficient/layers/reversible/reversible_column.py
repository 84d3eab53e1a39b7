import keras
from keras import ops

from keras_efficient.layers.invertible.examples import sum_per_example
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import check_sub_layers
from keras_efficient.layers.reversible.sub_layers import compatible


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleColumn(ReversibleLayer):
    """Run one column of a reversible column network.

    A column takes the feature maps `c_0, ..., c_{N-1}` of the column before,
    from fine to coarse, and what every column sees, `x`:

    ```
    y_i = s_i c_i + L_i(y_{i-1}, c_{i+1})         y_{-1} = x
    c_i = (y_i - L_i(y_{i-1}, c_{i+1})) / s_i     from i = N - 1 on
    ```

    The last level has no `c_{i+1}`. The first column has no `c` at all and
    computes `y_i = L_i(y_{i-1})`. `x` is passed on beside the feature maps,
    so a `keras_efficient.layers.ReversibleSequence` over all columns, the
    first too, keeps `x` and N feature maps, however many columns there are.

    The scale `s` is learned, one number for each channel. Its absolute value
    is kept at `epsilon` or above by a clamp that gradients pass straight
    through. A scale of exactly 0 counts as `epsilon`, too: with 0 itself, as
    in the authors' code, there would be no inverse. A rounding error grows by
    `1 / |s|` a column in the reconstruction.

    Args:
        levels: List of N Keras layers. Each is called on a list of tensors,
            `[y_{i-1}, c_{i+1}]`, and returns `y_i` less its first term.
        first: Boolean, whether this is the first column. Defaults to `False`.
        far_feedback: Boolean, whether level 0 is called on
            `[x, c_1, c_{N-1}]`. Defaults to `False`.
        scale: Float, the initial value of `s`. Defaults to `0.5`.
        epsilon: Float, above 0. Defaults to `1e-3`.
        axis: Integer, of the channels: `-1` or `1`. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: List of tensors, `[x, c_0, ..., c_{N-1}]`, or `[x]` for the
            first column.
        context: Tensors for those levels whose `call` has this argument, see
            `keras_efficient.layers.ReversibleLayer`.
        training: Python bool, passed on to the levels.

    Returns:
        List of tensors, `[x, y_0, ..., y_{N-1}]`.

    Raises:
        TypeError: an entry of `levels` is not a Keras layer.
        ValueError: `epsilon` is not positive, there are not as many inputs as
            there have to be, or a level returns another shape than `c_i` has.

    Example:

    ```python
    class Level(keras.layers.Layer):
        def build(self, shapes):
            self.dense = keras.layers.Dense(8, activation="tanh")
            self.dense.build((None, sum(shape[-1] for shape in shapes)))

        def call(self, inputs):
            return self.dense(keras.ops.concatenate(inputs, axis=-1))

    columns = [
        keras_efficient.layers.ReversibleColumn([Level(), Level()], i == 0)
        for i in range(3)
    ]
    run = keras_efficient.layers.ReversibleSequence(columns)
    x, fine, coarse = run([keras.random.normal((2, 5))])
    ```

    Reference:
        - [Cai et al., 2023](https://arxiv.org/abs/2212.11696)
    """

    def __init__(
        self,
        levels,
        first=False,
        far_feedback=False,
        scale=0.5,
        epsilon=1e-3,
        axis=-1,
        **kwargs,
    ):
        super().__init__(axis=axis, **kwargs)
        for level in levels:
            check_sub_layers(levels=level)
        if not epsilon > 0:
            raise ValueError(
                "`epsilon` must be above 0: the inverse divides by the scale. "
                f"Received: epsilon={epsilon}"
            )
        self.levels = list(levels)
        self.first = first
        self.bijective = not first
        self.far_feedback = far_feedback
        self.scale = scale
        self.epsilon = epsilon
        self.scales = []

    def build(self, inputs_shape, context_shape=None, arguments_shape=None):
        expected = 1 if self.first else 1 + len(self.levels)
        if len(inputs_shape) != expected:
            raise ValueError(
                f"Layer '{self.name}' takes a list of {expected} tensor(s) "
                f"(first={self.first}). Received: shapes {inputs_shape}"
            )
        for i, shape in enumerate(list(inputs_shape)[1:]):
            rest = [1] * (len(shape) - 2) if self.axis == 1 else []
            scale = self.add_weight(
                name=f"scale_{i}",
                shape=(shape[self.axis], *rest),
                initializer=keras.initializers.Constant(self.scale),
            )
            self.scales.append(scale)
        super().build(inputs_shape, context_shape, arguments_shape)

    def build_sub_layers(self, shapes, shared):
        evaluate = self.evaluator(shared, training=False)
        below, *c = map(self.symbol, shapes)
        for i, level in enumerate(self.levels):
            below = evaluate(level, [below, *self._above(c, i)])
            if c and not compatible(below.shape, c[i].shape):
                raise ValueError(
                    f"Level {i} of '{self.name}' must return shape "
                    f"{c[i].shape}, that of its feature map in the column "
                    f"before. It returns {below.shape}"
                )

    def couple(self, streams, evaluate):
        x, *c = streams
        outputs = [x]
        for i, level in enumerate(self.levels):
            y = evaluate(level, [outputs[-1], *self._above(c, i)])
            outputs.append(y if self.first else self._scale(i) * c[i] + y)
        return tuple(outputs)

    def uncouple(self, streams, evaluate):
        c = [None] * len(self.levels)
        for i in reversed(range(len(c))):
            y = evaluate(self.levels[i], [streams[i], *self._above(c, i)])
            if not self.first:
                c[i] = (streams[i + 1] - y) / self._scale(i)
        return streams[:1] if self.first else (streams[0], *c)

    def couple_with_log_det(self, streams, evaluate):
        self._check_square()
        return self.couple(streams, evaluate), self._log_det(streams)

    def uncouple_with_log_det(self, streams, evaluate):
        self._check_square()
        return self.uncouple(streams, evaluate), self._log_det(streams)

    def _check_square(self):
        if self.first:
            self._check_volume()

    def _log_det(self, streams):
        logs = [
            ops.log(ops.abs(self._scale(i))) for i in range(len(self.levels))
        ]
        return sum(
            sum_per_example(ops.zeros_like(c) + log)
            for c, log in zip(streams[1:], logs)
        )

    def pull_back(self, outputs, cotangents, vjp):
        """Reconstruct the inputs and pull the cotangents back to them.

        From i = N - 1 on, with d the cotangent of `y_i`, all that comes from
        `L_{i+1}` included, and J, K the Jacobians of `L_i` by its arguments:

        ```
        ds_i = sum(d c_i)                dc_i = s_i d + K_{i-1}^T dy_{i-1}
        dy_{i-1} += J_i^T d              dx = dy_{-1}
        ```
        """
        n = len(self.levels)
        d_y, c, d_c = list(cotangents), [None] * n, [None] * n
        for i in reversed(range(n)):
            inputs = [outputs[i], *self._above(c, i)]
            y, pullback = vjp(self.levels[i], inputs)
            d = d_y[i + 1]
            d_below, *d_above = pullback(d)
            d_y[i] = d_y[i] + d_below
            if self.first:
                continue
            c[i] = (outputs[i + 1] - y) / self._scale(i)
            d_c[i] = self._scale(i) * d
            vjp.add(self.scales[i], self._sum(d * c[i], self.scales[i]))
            for k, d_k in zip(self._above(range(n), i), d_above):
                d_c[k] = d_c[k] + d_k
        if self.first:
            return outputs[:1], (d_y[0],)
        return (outputs[0], *c), (d_y[0], *d_c)

    def _above(self, c, i):
        """List those of `c` that level i is called on."""
        n = len(self.levels)
        if self.first or i == n - 1:
            return []
        return (
            [c[i + 1], c[n - 1]] if i == 0 and self.far_feedback else [c[i + 1]]
        )

    def _scale(self, i):
        s = ops.convert_to_tensor(self.scales[i])
        gap = ops.where(s < 0, -self.epsilon - s, self.epsilon - s)
        is_small = ops.abs(s) < self.epsilon
        gap = ops.where(is_small, gap, ops.zeros_like(s))
        return s + ops.stop_gradient(gap)

    def _sum(self, x, scale):
        axis = self.axis % len(x.shape)
        axes = [a for a in range(len(x.shape)) if a != axis]
        return ops.reshape(ops.sum(x, axis=axes), scale.shape)

    def compute_output_shape(self, inputs_shape, context_shape=None):
        shapes = [tuple(shape) for shape in inputs_shape]
        if not self.first:
            return shapes
        for level in self.levels:
            y = level.compute_output_spec([self.symbol(shapes[-1])])
            shapes.append(tuple(y.shape))
        return shapes

    def get_config(self):
        levels = map(keras.saving.serialize_keras_object, self.levels)
        return {
            **super().get_config(),
            "levels": list(levels),
            "first": self.first,
            "far_feedback": self.far_feedback,
            "scale": self.scale,
            "epsilon": self.epsilon,
        }

    @classmethod
    def from_config(cls, config):
        levels = map(keras.saving.deserialize_keras_object, config["levels"])
        return cls(**{**config, "levels": list(levels)})
