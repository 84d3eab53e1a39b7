"""The primitives on JAX."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from keras_efficient.backend.errors import NO_SECOND_DERIVATIVE


def vjp(fn, *primals):
    """Return `fn(*primals)` and its pullback.

    What is not floating point (masks, indices) is passed through; its entry
    among the gradients is `None`, and its cotangents are not looked at.
    """
    leaves, structure = jax.tree_util.tree_flatten(primals)

    def of_floats(floats):
        floats = iter(floats)
        return fn(
            *jax.tree_util.tree_unflatten(
                structure,
                [next(floats) if is_float(x) else x for x in leaves],
            )
        )

    outputs, pull = jax.vjp(of_floats, [x for x in leaves if is_float(x)])

    def pullback(cotangents):
        cotangents = jax.tree_util.tree_map(
            lambda y, d: d if is_float(y) else _no_cotangent(y),
            outputs,
            cotangents,
        )
        gradients = iter(pull(cotangents)[0])
        return jax.tree_util.tree_unflatten(
            structure,
            [next(gradients) if is_float(x) else None for x in leaves],
        )

    return outputs, pullback


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _no_cotangent(y):
    return np.zeros(y.shape, jax.dtypes.float0)


def custom_vjp(forward, backward):
    """Make a function whose derivative is `backward`.

    Args:
        forward: `forward(*args) -> (outputs, residuals)`, all of them nested
            structures of tensors.
        backward: `backward(residuals, cotangents) -> gradients`, one entry
            for each of `args`; `None` stands for no gradient.

    Returns:
        `fn(*args) -> outputs`. Nothing but `residuals` is kept for the
        backward pass.
    """

    @jax.custom_vjp
    def fn(*args):
        return forward(*args)[0]

    fn.defvjp(forward, backward)
    return fn


def not_differentiable(fn):
    """Make `fn` raise an error when it is differentiated."""
    fn = jax.custom_jvp(fn)

    @fn.defjvp
    def refuse(primals, tangents):
        raise NotImplementedError(NO_SECOND_DERIVATIVE)

    return fn


def segment(fn, *args, after=()):
    """Return `fn(*args)`, not begun before `args` and `after` are there.

    Left alone, XLA runs reconstructions ahead of the gradients, fuses them
    into one long chain, or finds that the backward pass draws the random
    numbers of the forward pass again, and holds what it was to forget.
    Accelerators respect `optimization_barrier`. XLA on CPU removes it early;
    there the arguments pass through a conditional. Its condition always
    holds, but XLA does not see that.

    Args:
        fn: Function of the tensors in `args`.
        *args: Nested structures of tensors.
        after: Nested structure of tensors that is to be computed first.
    """
    leaves = jax.tree_util.tree_leaves((args, after))
    if not any(isinstance(x, jax.core.Tracer) for x in leaves):
        return fn(*args)  # without jit JAX runs in program order

    def conditional(args, after):
        leaves = jax.tree_util.tree_leaves
        bits = sum(map(_first_bits, [leaves(args)[-1], *leaves(after)]))
        return jax.lax.cond(
            (bits | 1) != 0,
            lambda args: args,
            lambda args: jax.tree_util.tree_map(jnp.zeros_like, args),
            args,
        )

    def barrier(args, after):
        return jax.lax.optimization_barrier((args, after))[0]

    return fn(
        *jax.lax.platform_dependent(
            args, after, cpu=conditional, default=barrier
        )
    )


def _first_bits(x):
    first = x.ravel()[:1].astype("float32")
    return jax.lax.bitcast_convert_type(first, "int32").sum()


def record_random(fn):
    """Random numbers come from seeds, which are variables: no more to keep."""
    return fn(), []


def replay_random(state):
    return contextlib.nullcontext()


def run_compiled(fn, args, owner, key):
    """`jax.jit` compiles the whole step."""
    return fn(*args)
