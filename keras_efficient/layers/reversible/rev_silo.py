import keras

from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import check_sub_layers
from keras_efficient.layers.reversible.sub_layers import compatible


@keras.saving.register_keras_serializable(package="keras_efficient")
class RevSilo(ReversibleLayer):
    """Mix feature maps of N scales with each other, invertibly.

    From the finest scale 0 to the coarsest, N - 1:

    ```
    down:  u_j = x_j + sum_{i < j} f_ij(x_i)
    up:    y_j = u_j + sum_{i > j} g_ij(u_i)
    ```

    Both halves are triangular, which is why the inputs follow from the
    outputs, scale by scale: `u_j` from the coarsest on, then `x_j` from the
    finest on,

    ```
    u_j = y_j - sum_{i > j} g_ij(u_i)       x_j = u_j - sum_{i < j} f_ij(x_i)
    ```

    With a `new_scale` there are N - 1 inputs and N outputs: `x_{N-1}` is zero,
    and there is nothing to reconstruct.

    `f_ij` and `g_ij` are arbitrary Keras layers from the shape of scale i to
    that of scale j. The backward pass evaluates each once and has the
    activations of one at a time in memory.

    Args:
        down: List of N - 1 lists of layers; `down[i]` holds `f_ij` for
            j = i + 1, ..., N - 1.
        up: List of N - 1 lists of layers; `up[i - 1]` holds `g_ij` for
            j = 0, ..., i - 1.
        new_scale: Boolean. Whether the coarsest scale is new. Defaults to
            `False`.
        axis: Integer, that of the blocks around it in a sequence; the layer
            itself splits nothing. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: List of N tensors, N - 1 with a `new_scale`, from fine to
            coarse.
        context: Tensors for those sub-layers whose `call` has this argument,
            see `keras_efficient.layers.ReversibleLayer`.
        training: Python bool, passed on to all sub-layers.

    Returns:
        List of N tensors.

    Raises:
        TypeError: an entry of `down` or `up` is not a Keras layer.
        ValueError: these are not as many as they have to be, or a layer does
            not return the shape of the scale that it is added to.

    Example:

    ```python
    silo = keras_efficient.layers.RevSilo(
        down=[[keras_efficient.layers.MBConv(16, strides=2)]],
        up=[[keras.Sequential([
            keras_efficient.layers.MBConv(8),
            keras.layers.UpSampling2D(2, interpolation="bilinear"),
        ])]],
    )
    x = [keras.random.normal((2, s, s, n)) for s, n in ((16, 8), (8, 16))]
    x_again = silo.inverse(silo(x))
    ```

    Reference:
        - [Chiley et al., 2022](https://arxiv.org/abs/2206.14098)
    """

    additive = True

    def __init__(self, down, up, new_scale=False, axis=-1, **kwargs):
        super().__init__(axis=axis, **kwargs)
        self.num_scales = len(up) + 1
        lengths = list(map(len, down)), list(map(len, up))
        triangle = list(range(1, self.num_scales))
        if not up or lengths != (triangle[::-1], triangle):
            raise ValueError(
                "For N scales, `down` must be lists of N - 1, ..., 1 layers "
                "and `up` lists of 1, ..., N - 1 layers. Received: lists of "
                f"{lengths[0]} and of {lengths[1]}"
            )
        # Flat, since Keras saves the layers in a list, not in lists of lists.
        self.down = [layer for row in down for layer in row]
        self.up = [layer for row in up for layer in row]
        for name in ("down", "up"):
            for layer in getattr(self, name):
                check_sub_layers(**{name: layer})
        self.new_scale = new_scale
        self.bijective = not new_scale

    def _down(self, i):
        """List `(j, f_ij)` for all j."""
        n = self.num_scales
        start = i * (n - 1) - i * (i - 1) // 2
        return list(zip(range(i + 1, n), self.down[start:]))

    def _up(self, i):
        """List `(j, g_ij)` for all j."""
        return list(zip(range(i), self.up[i * (i - 1) // 2 :]))

    def build_sub_layers(self, shapes, shared):
        expected = self.num_scales - self.new_scale
        if len(shapes) != expected:
            raise ValueError(
                f"Layer '{self.name}' takes a list of {expected} feature maps "
                f"(new_scale={self.new_scale}). Received: shapes {shapes}"
            )
        evaluate = self.evaluator(shared, training=False)
        shapes = list(map(tuple, shapes))

        def add(layer, i, j):
            y = evaluate(layer, self.symbol(shapes[i]))
            if j == len(shapes):
                shapes.append(tuple(y.shape))
            if not compatible(y.shape, shapes[j]):
                raise ValueError(
                    f"The layer from scale {i} to scale {j} of '{self.name}' "
                    f"must return shape {shapes[j]}. '{layer.name}' returns "
                    f"{tuple(y.shape)}"
                )

        for i in range(expected):
            for j, f in self._down(i):
                add(f, i, j)
        for i in range(1, self.num_scales):
            for j, g in self._up(i):
                add(g, i, j)

    def couple(self, streams, evaluate):
        x = streams
        u = list(x) + [None] * self.new_scale
        # The order of these sums is free. This one `uncouple` takes in
        # reverse, as it has to where a layer stands in several places.
        for i in reversed(range(len(x))):
            for j, f in reversed(self._down(i)):
                value = evaluate(f, x[i])
                u[j] = value if u[j] is None else u[j] + value
        y = list(u)
        for i in range(1, self.num_scales):
            for j, g in reversed(self._up(i)):
                y[j] = y[j] + evaluate(g, u[i])
        return tuple(y)

    def uncouple(self, streams, evaluate):
        u = list(streams)
        for i in reversed(range(1, self.num_scales)):
            for j, g in self._up(i):
                u[j] = u[j] - evaluate(g, u[i])
        x = u[: self.num_scales - self.new_scale]
        for i in range(len(x)):
            for j, f in self._down(i):
                value = evaluate(f, x[i])
                if j < len(x):
                    x[j] = x[j] - value
        return tuple(x)

    def pull_back(self, outputs, cotangents, vjp):
        """Reconstruct the inputs and pull the cotangents back to them.

        With J the Jacobian of a function at the point of its evaluation:

        ```
        du_i = dy_i + sum_{j < i} J_gij(u_i)^T dy_j
        dx_i = du_i + sum_{j > i} J_fij(x_i)^T du_j
        ```
        """
        u, d_y = list(outputs), cotangents
        d_u = list(d_y)
        for i in reversed(range(1, self.num_scales)):
            for j, g in self._up(i):
                value, pullback = vjp(g, u[i])
                u[j] = u[j] - value
                d_u[i] = d_u[i] + pullback(d_y[j])
        x = u[: self.num_scales - self.new_scale]
        d_x = d_u[: len(x)]
        for i in range(len(x)):
            for j, f in self._down(i):
                value, pullback = vjp(f, x[i])
                if j < len(x):
                    x[j] = x[j] - value
                d_x[i] = d_x[i] + pullback(d_u[j])
        return tuple(x), tuple(d_x)

    def compute_output_shape(self, inputs_shape, context_shape=None):
        shapes = [tuple(shape) for shape in inputs_shape]
        if self.new_scale:
            _, f = self._down(0)[-1]
            y = f.compute_output_spec(self.symbol(shapes[0]))
            shapes.append(tuple(y.shape))
        return shapes

    def get_config(self):
        config = super().get_config()
        serialize = keras.saving.serialize_keras_object
        n = self.num_scales
        down = [[serialize(f) for _, f in self._down(i)] for i in range(n - 1)]
        up = [[serialize(g) for _, g in self._up(i)] for i in range(1, n)]
        config.update(down=down, up=up, new_scale=self.new_scale)
        return config

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        rows = {
            name: [[deserialize(f) for f in row] for row in config[name]]
            for name in ("down", "up")
        }
        return cls(**{**config, **rows})
