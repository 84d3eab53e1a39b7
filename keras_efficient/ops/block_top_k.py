from keras import ops


def block_top_k(x, k):
    """Find the `k` entries of largest magnitude in each block.

    Args:
        x: Float tensor of shape `(blocks, block_size)`.
        k: Integer from 1 to `block_size`.

    Returns:
        `(indices, values)`, both of shape `(blocks, k)`: int32 positions
        within the block, and the entries of `x` there, with their signs.

    Example:

    ```python
    x = keras.ops.array([[1.0, -5.0, 2.0, 0.0]])
    indices, values = keras_efficient.ops.block_top_k(x, k=2)
    # indices: [[1, 2]], values: [[-5.0, 2.0]]
    ```
    """
    if k == x.shape[-1]:
        indices = ops.broadcast_to(ops.arange(k, dtype="int32"), x.shape)
        return indices, x
    _, indices = ops.top_k(ops.abs(x), k)
    return ops.cast(indices, "int32"), ops.take_along_axis(x, indices, axis=-1)
