"""Products with float32 sums, and loops over chunks of rows, on TensorFlow."""

import contextlib

import tensorflow as tf

# Fewer rows make slow products, more of them take memory: XLA holds more than
# two chunks here.
ROWS_A_CHUNK = 128
cross_entropy = None  # XLA joins the operations of the portable form


def can_look_at(x):
    """Whether Python can ask for the values of `x` now."""
    return tf.executing_eagerly()


def scratch(like, rows, columns):
    """Memory for the results of `product`: TensorFlow finds its own."""


def operand(x, dtype):
    """Return `x` as `product` takes it.

    The matrix product of TensorFlow rounds its result to the dtype of the
    operands. So these are float32 numbers, with the digits of `dtype`.
    """
    return tf.cast(tf.cast(x, dtype), _wide(dtype))


def _wide(dtype):
    return "float64" if dtype == "float64" else "float32"


large_operand = operand


def products_of(dtype):
    """A context in which `product` may take operands as `dtype`: not here."""
    return contextlib.nullcontext()


def factor(x, dtype):
    """Return a float32 `x` as `product` takes it, beside such operands."""
    return x


def product(a, b, transpose_a=False, transpose_b=False, bias=None, out=None):
    """Return `a b + bias`, of what `operand` returns."""
    # Not by `tf.transpose`: a copy would be kept.
    y = tf.linalg.matmul(a, b, transpose_a, transpose_b)
    return y if bias is None else y + bias


def add_product(total, a, b):
    """Return `total + a^T b`."""
    return total + product(a, b, transpose_a=True)


def add_rows(total, indices, rows):
    """Return `total` with each row added at its index."""
    return tf.tensor_scatter_nd_add(total, indices[:, None], rows)


def soft_cap(z, cap):
    """Return `cap tanh(z / cap)`."""
    return cap * tf.tanh(z / cap)


def over_chunks(step, carry, rows, size, kinds):
    """Run a function over chunks of rows, one after the other.

    See `keras_efficient.backend.jax_chunks.over_chunks`.
    """
    known = rows[0].shape[0]
    count = tf.shape(rows[0])[0] if known is None else known
    full = count // size
    if known is None:  # XLA compiles the loop even if it runs no time
        size = tf.minimum(size, count)
        full = count // tf.maximum(size, 1)

    def cut(start, length):
        return [
            tf.slice(
                x,
                [start] + [0] * (len(x.shape) - 1),
                [length] + [-1] * (len(x.shape) - 1),
            )
            for x in rows
        ]

    def body(i, leaves, arrays):
        carry_in = tf.nest.pack_sequence_as(carry, leaves)
        carry_out, found = step(carry_in, cut(i * size, size))
        found = zip(arrays, found, strict=True)
        arrays = [array.write(i, part) for array, part in found]
        return i + 1, tf.nest.flatten(carry_out), arrays

    arrays = [
        tf.TensorArray(dtype, size=full, element_shape=(None, *shape))
        for dtype, shape in kinds
    ]
    state = tf.constant(0), tf.nest.flatten(carry), arrays
    if known is None or full:
        state = tf.while_loop(
            lambda i, *_: i < full, body, state, parallel_iterations=1
        )
    _, leaves, arrays = state
    carry = tf.nest.pack_sequence_as(carry, leaves)
    rest = count - full * size
    if not kinds:  # results of no rows need no step
        if known is not None and isinstance(rest, int):
            return step(carry, cut(full * size, rest)) if rest else (carry, [])
        return _if_any(
            rest, lambda: step(carry, cut(full * size, rest))[0], carry
        ), []
    if known is not None and known % size == 0 and full:
        return carry, [array.concat() for array in arrays]
    carry, last = step(carry, cut(full * size, count % size))
    if known is not None and not full:
        return carry, list(last)
    return carry, [
        tf.concat([array.concat(), part], 0)
        for array, part in zip(arrays, last, strict=True)
    ]


def _if_any(rest, run, carry):
    leaves = tf.cond(
        rest > 0,
        lambda: tf.nest.flatten(run()),
        lambda: tf.nest.flatten(carry),
    )
    return tf.nest.pack_sequence_as(carry, leaves)
