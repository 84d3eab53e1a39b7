"""Products with float32 sums, and loops over chunks of rows, on JAX."""

import jax
import jax.numpy as jnp

# Each chunk adds to the gradient of the kernel, in three passes over it.
ROWS_A_CHUNK = 512
cross_entropy = None  # XLA joins the operations of the portable form


def can_look_at(x):
    """Whether Python can ask for the values of `x` now."""
    return not isinstance(x, jax.core.Tracer)


def scratch(like, rows, columns):
    """Memory for the results of `product`: XLA finds its own."""


def operand(x, dtype):
    """Return `x` as `product` takes it."""
    return x.astype(dtype)


large_operand = operand


def factor(x, dtype):
    """Return a float32 `x` as `product` takes it, beside such operands."""
    return x.astype(dtype)


def product(a, b, transpose_a=False, transpose_b=False, bias=None, out=None):
    """Return `a b + bias` in float32, or in float64 if the operands are."""
    y = jax.lax.dot_general(
        a,
        b,
        (((0 if transpose_a else 1,), (1 if transpose_b else 0,)), ((), ())),
        preferred_element_type=jnp.promote_types(a.dtype, "float32"),
    )
    return y if bias is None else y + bias


def add_product(total, a, b):
    """Return `total + a^T b`."""
    return total + product(a, b, transpose_a=True)


def add_rows(total, indices, rows):
    """Return `total` with each row added at its index."""
    return total.at[indices].add(rows)


def soft_cap(z, cap):
    """Return `cap tanh(z / cap)`."""
    return cap * jnp.tanh(z / cap)


def over_chunks(step, carry, rows, size, kinds):
    """Run a function over chunks of rows, one after the other.

    The last chunk may be shorter. It is not padded: metrics would count it.

    Args:
        step: `step(carry, chunks) -> (carry, results)`.
        carry: Nested structure of tensors.
        rows: List of tensors with the same first axis, which may be of
            unknown size in a graph.
        size: Integer, the rows of a chunk.
        kinds: List of pairs, for each result the dtype and the shape of a row.

    Returns:
        The last carry, and a list of the results of all rows.
    """
    count = rows[0].shape[0]
    full = count // size
    results = [jnp.zeros((count, *shape), dtype) for dtype, shape in kinds]

    def run(start, length, state):
        carry, results = state
        chunks = [jax.lax.dynamic_slice_in_dim(x, start, length) for x in rows]
        carry, found = step(carry, chunks)
        return carry, [
            jax.lax.dynamic_update_slice_in_dim(y, part, start, 0)
            for y, part in zip(results, found, strict=True)
        ]

    state = carry, results
    if full > 1 and any(not can_look_at(x) for x in rows):
        state = jax.lax.fori_loop(
            0, full, lambda i, state: run(i * size, size, state), state
        )
    else:  # without jit a loop would be compiled anew in each call
        for i in range(full):
            state = run(i * size, size, state)
    if count % size:
        state = run(full * size, count % size, state)
    return state
