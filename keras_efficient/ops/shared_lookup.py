from keras import ops

from keras_efficient import backend


def shared_lookup(table, indices):
    """Look up rows of a table that is used for something else, too.

    The gradient of a lookup is as large as the table, and so is that of the
    other use, of the logits of tied embeddings for instance. Here the second
    one passes through the lookup, which adds a few rows to it:

    ```
    d table = d other, and d table[indices[i]] += d rows[i] for each i
    ```

    Args:
        table: Tensor of shape `(size, width)`.
        indices: Integer tensor.

    Returns:
        `(rows, other)`: a tensor of shape `(*indices.shape, width)`, and the
        table, for the other use. Without one it is as a plain lookup.
    """

    size, width = table.shape  # that of a gradient TensorFlow may not know

    def forward(table, indices):
        return (ops.take(table, indices, axis=0), table), indices

    def backward(indices, cotangents):
        d_rows, d_table = cotangents
        indices = ops.where(indices < 0, indices + size, indices)
        d_table = backend.add_rows(
            d_table,
            ops.reshape(indices, (-1,)),
            ops.reshape(d_rows, (-1, width)),
        )
        return d_table, None

    return backend.custom_vjp(forward, backward)(table, indices)
