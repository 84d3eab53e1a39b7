"""Products with float32 sums, and loops over chunks of rows, on JAX."""

import contextlib

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


def products_of(dtype):
    """A context in which `product` takes operands as `dtype`: it does so."""
    return contextlib.nullcontext()


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
    """Return `total` with each row added at its index.

    Rows of one index are added up in float32 first.
    """
    wide = jnp.promote_types(total.dtype, "float32")
    order = jnp.argsort(indices)
    indices, rows = indices[order], rows[order].astype(wide)
    is_next = jnp.diff(indices, prepend=indices[:1]) != 0
    place = jnp.cumsum(is_next)
    sums = jnp.zeros_like(rows).at[place].add(rows)[place]
    bits = _bits(total)
    old = _from_bits(bits[indices], total.dtype)
    new = (old.astype(wide) + sums).astype(total.dtype)
    # Entries of one index are alike.
    return _from_bits(bits.at[indices].set(_bits(new)), total.dtype)


def _bits(x):
    """Return a float of 16 bits as integers.

    A CPU has no arithmetic of bfloat16, so that XLA widens what it is done
    with: of a part that is cut out, put in or added to, the whole tensor.
    """
    if x.dtype.itemsize != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def _from_bits(x, dtype):
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


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
    bits = [_bits(x) for x in rows]

    def run(start, length, state):
        carry, results = state
        chunks = [
            _from_bits(jax.lax.dynamic_slice_in_dim(x, start, length), y.dtype)
            for x, y in zip(bits, rows)
        ]
        carry, found = step(carry, chunks)
        return carry, [
            jax.lax.dynamic_update_slice_in_dim(y, _bits(part), start, 0)
            for y, part in zip(results, found, strict=True)
        ]

    state = carry, [_bits(x) for x in results]
    if full > 1 and any(not can_look_at(x) for x in rows):
        state = jax.lax.fori_loop(
            0, full, lambda i, state: run(i * size, size, state), state
        )
    else:  # without jit a loop would be compiled anew in each call
        for i in range(full):
            state = run(i * size, size, state)
    if count % size:
        state = run(full * size, count % size, state)
    carry, results = state
    return carry, [
        _from_bits(x, dtype) for x, (dtype, _) in zip(results, kinds)
    ]
