import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers


@keras.saving.register_keras_serializable(package="keras_efficient")
class SimplifiedLinearAttention(keras.layers.Layer):
    """Attend over a grid of patches at a cost linear in their number.

    It is for pictures with many patches; it does not compute softmax
    attention, and takes no class token, which has no place in the grid.

    With q = relu(x W_q), k = relu(x W_k + positions), v = x W_v in each head,

    ```
    y_i = q_i (sum_j k_j^T v_j) / (q_i sum_j k_j + 1e-6)
    output = (y + depthwise_convolution(v)) W
    ```

    For n patches and heads of size d this takes n d^2 multiplications, where
    attention takes n^2 d: it pays off when n > d.

    Args:
        num_heads: Integer. Must divide the width.
        grid: Pair of integers, rows and columns of patches.
        kernel_size: Integer, of the depthwise convolution, one for all heads.
            Defaults to `5`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, rows * columns, width)`.
        mask: Boolean tensor of shape `(batch, rows * columns)`, true where
            patches may be seen.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: `num_heads` does not divide the width, or there are more
            or fewer patches than the grid has.

    Example:

    ```python
    layer = keras_efficient.layers.SimplifiedLinearAttention(4, grid=(6, 6))
    y = layer(keras.random.normal((2, 36, 32)))
    ```

    Reference:
        - [Guo et al., 2024](https://arxiv.org/abs/2405.11582)
    """

    def __init__(self, num_heads, grid, kernel_size=5, **kwargs):
        check_integers(1, num_heads=num_heads, kernel_size=kernel_size)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = num_heads
        self.grid = _checked(grid)
        self.kernel_size = kernel_size

    def build(self, input_shape):
        _, length, width = input_shape
        if width % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the width. Received: "
                f"num_heads={self.num_heads}, width={width}"
            )
        rows, columns = self.grid
        if length != rows * columns:
            raise ValueError(
                "The input must have one patch for each place of the grid. "
                f"Received: grid={self.grid}, input_shape={input_shape}"
            )
        shared = {"dtype": self.dtype_policy}
        self.query, self.key, self.value, self.projection = (
            keras.layers.Dense(width, name=name, **shared)
            for name in ("query", "key", "value", "projection")
        )
        for dense in (self.query, self.key, self.value, self.projection):
            dense.build(input_shape)
        self.positions = self.add_weight(
            name="positions", shape=(length, width), initializer="zeros"
        )
        self.depthwise = keras.layers.DepthwiseConv2D(
            self.kernel_size,
            padding="same",
            data_format="channels_last",
            name="depthwise",
            **shared,
        )
        self.head_size = width // self.num_heads
        self.depthwise.build((None, rows, columns, self.head_size))

    def call(self, inputs, mask=None):
        shape = ops.shape(inputs)
        heads = (*shape[:2], self.num_heads, self.head_size)
        q = ops.relu(self.query(inputs))
        k = ops.relu(self.key(inputs) + self.positions)
        v = self.value(inputs)
        if mask is not None:
            seen = ops.cast(mask, v.dtype)[..., None]
            k, v = k * seen, v * seen
        q, k, v = (ops.reshape(x, heads) for x in (q, k, v))
        # Sums over many patches: in float32.
        wide = keras.backend.result_type(v.dtype, "float32")
        q, k, u = (ops.cast(x, wide) for x in (q, k, v))
        above = ops.einsum(
            "nlhd,nhde->nlhe", q, ops.einsum("nlhd,nlhe->nhde", k, u)
        )
        below = ops.einsum("nlhd,nhd->nlh", q, ops.sum(k, axis=1))
        y = ops.cast(above / (below[..., None] + 1e-6), v.dtype)
        y = ops.reshape(y + self._over_grid(v), shape)
        return self.projection(y)

    def _over_grid(self, v):
        """The convolution, the same in all heads."""
        batch, length, heads, size = ops.shape(v)
        x = ops.reshape(ops.swapaxes(v, 1, 2), (-1, *self.grid, size))
        x = ops.reshape(self.depthwise(x), (-1, heads, length, size))
        return ops.swapaxes(x, 1, 2)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "grid": self.grid,
            "kernel_size": self.kernel_size,
        }


def _checked(grid):
    """Return the grid as a tuple of rows and columns."""
    if not isinstance(grid, (list, tuple)) or len(grid) != 2:
        raise ValueError(
            f"`grid` must be a tuple `(rows, columns)`. Received: grid={grid!r}"
        )
    rows, columns = grid
    check_integers(1, rows=rows, columns=columns)
    return rows, columns
