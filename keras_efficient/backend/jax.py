"""The primitives on JAX."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_efficient.backend import generators
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


def alarm(failed, warn, fail, in_program):
    """Let it be known if `failed` holds.

    Args:
        failed: Boolean tensor without axes.
        warn: Function without arguments.
        fail: Function without arguments that raises an error. It is called
            instead of `warn` where Python runs the program. Or `None`.
        in_program: Function from `failed` to a tensor, zero, that does what
            `warn` does when it is computed in a compiled program; or `None`.

    Returns:
        `None`, or in a compiled program a tensor, zero, that has to be used.
    """
    if not isinstance(failed, jax.core.Tracer):
        if failed:
            (fail or warn)()
        return None

    def callback():
        jax.debug.callback(lambda failed: failed and warn(), failed)
        return jnp.zeros((), "float32")

    return jax.lax.cond(
        failed,
        functools.partial(in_program, failed) if in_program else callback,
        lambda: jnp.zeros((), "float32"),
    )


# What comes out of a gradient has lost the masks of Keras.
gradients_lose_masks = True


def eagerly():
    """A context in which operations run now, in the midst of a trace."""
    return jax.ensure_compile_time_eval()


record_random = generators.record
replay_random = generators.replay


def leaves(layer):
    """Return a key for each trainable tensor of a layer."""
    return {id(v) for v in layer.variables if v.trainable}


def leaf_gradients(layer, call, inputs):
    """Differentiate `sum(call(inputs) ** 2) / 2`, as a training step does.

    Args:
        layer: The Keras layer that `call` calls. It is not changed.
        call: Function of `inputs`.
        inputs: Nested structure of tensors.

    Returns:
        `(gradients, input_gradients)`, the first by the keys of `leaves`: of
        all trainable tensors that the call reads. On JAX only those of the
        layer itself can be known.
    """
    params = [v for v in layer.variables if v.trainable]
    state = [(v, v.value) for v in layer.variables if not v.trainable]

    def fn(values, inputs):
        with keras.StatelessScope([*zip(params, values), *state]):
            return call(inputs)

    outputs, pullback = vjp(fn, [v.value for v in params], inputs)
    gradients, input_gradients = pullback(outputs)
    return dict(zip(map(id, params), gradients)), input_gradients


def run_compiled(fn, args, owner, key):
    """`jax.jit` compiles the whole step."""
    return fn(*args)
