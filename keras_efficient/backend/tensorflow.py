"""The primitives on TensorFlow, in eager mode, in graphs and under XLA."""

import functools

import keras
import tensorflow as tf

from keras_efficient.backend import generators
from keras_efficient.backend.errors import NO_SECOND_DERIVATIVE


def vjp(fn, *primals):
    """Return `fn(*primals)` and its pullback, which can be called once.

    What is not floating point (masks, indices) is passed through; its entry
    among the gradients is `None`, and its cotangents are not looked at.
    """
    leaves = [tf.identity(leaf) for leaf in tf.nest.flatten(primals)]
    floats = [x for x in leaves if x.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch(floats)
        outputs = fn(*tf.nest.pack_sequence_as(primals, leaves))

    def pullback(cotangents):
        pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(cotangents))
        pairs = [(y, d) for y, d in pairs if y.dtype.is_floating]
        gradients = tape.gradient(
            [y for y, _ in pairs],
            floats,
            [d for _, d in pairs],
            unconnected_gradients="zero",
        )
        # Those of an embedding come as slices.
        gradients = map(tf.convert_to_tensor, gradients)
        return tf.nest.pack_sequence_as(
            primals,
            [next(gradients) if x.dtype.is_floating else None for x in leaves],
        )

    return outputs, pullback


def custom_vjp(forward, backward):
    """Make a function whose derivative is `backward`.

    See `keras_efficient.backend.jax.custom_vjp` for the contract.
    """

    def fn(*args):
        structure = outputs = None

        @tf.custom_gradient
        def flat_fn(*leaves):
            nonlocal structure
            # A tape that watches the caller also watches the inside of a
            # custom gradient, and would keep every intermediate.
            leaves = [tf.stop_gradient(leaf) for leaf in leaves]
            structure, residuals = forward(
                *tf.nest.pack_sequence_as(args, leaves)
            )

            def gradient(*cotangents):
                cotangents = tf.nest.pack_sequence_as(structure, cotangents)
                gradients = _flatten_gradients(
                    backward(residuals, cotangents), args
                )
                return once_differentiable(gradients, outputs)

            return tf.nest.flatten(structure), gradient

        # The outputs as the caller has them: connected to `args`.
        outputs = flat_fn(*tf.nest.flatten(args))
        return tf.nest.pack_sequence_as(structure, outputs)

    return fn


def once_differentiable(gradients, connected):
    """Return `gradients`, which raise an error when they are differentiated.

    To the tape they hang together with nothing, and it would answer `None`.
    So they are passed through a function that also takes `connected`.
    """

    @tf.custom_gradient
    def once(*leaves):
        def refuse(*cotangents):
            raise NotImplementedError(NO_SECOND_DERIVATIVE)

        return [tf.identity(x) for x in leaves[: len(found)]], refuse

    found = [x for x in gradients if x is not None]
    passed = iter(once(*found, *connected))
    return [None if x is None else next(passed) for x in gradients]


def not_differentiable(fn):
    """What `custom_vjp` makes raises it already."""
    return fn


def _flatten_gradients(gradients, args):
    """Flatten `gradients` along `args`; `None` covers the tree below it."""
    leaves = []
    for gradient, arg in zip(gradients, args):
        count = len(tf.nest.flatten(arg))
        leaves += (
            [None] * count if gradient is None else tf.nest.flatten(gradient)
        )
    return leaves


def segment(fn, *args, after=()):
    """Return `fn(*args)`, not begun before `args` and `after` are there.

    The graph executor starts whatever is ready, and XLA moves and merges
    what it can. So the arguments pass through a conditional. Its condition
    always holds, but neither sees that. (`tf.cond` would be taken apart again
    for the executor; the operation behind it is not.) Eager mode runs in
    program order.

    Args:
        fn: Function of the tensors in `args`.
        *args: Nested structures of tensors.
        after: Nested structure of tensors that is to be computed first.
    """
    if tf.executing_eagerly():
        return fn(*args)
    leaves = tf.nest.flatten(args)
    bits = sum(_first_bits(x) for x in (leaves[-1], *tf.nest.flatten(after)))
    kinds = tuple((tuple(x.shape.as_list()), x.dtype) for x in leaves)
    passed = tf.raw_ops.If(
        cond=tf.not_equal(tf.bitwise.bitwise_or(bits, 1), 0),
        input=leaves,
        Tout=[x.dtype for x in leaves],
        then_branch=_branch(tf.identity, kinds),
        else_branch=_branch(tf.zeros_like, kinds),
        output_shapes=[x.shape for x in leaves],
    )
    for x, leaf in zip(passed, leaves):
        x.set_shape(leaf.shape)
    return fn(*tf.nest.pack_sequence_as(args, passed))


@functools.cache
def _branch(fn, kinds):
    """A graph of `fn` on each tensor; blocks of one kind share it."""
    traced = tf.function(lambda *leaves: [fn(x) for x in leaves])
    with tf.init_scope():
        return traced.get_concrete_function(
            *[tf.TensorSpec(shape, dtype) for shape, dtype in kinds]
        )


def _first_bits(x):
    first = tf.cast(tf.reshape(x, (-1,))[:1], tf.float32)
    return tf.reduce_sum(tf.bitcast(first, tf.int32))


def alarm(failed, warn, fail, in_program):
    """Let it be known if `failed` holds.

    See `keras_efficient.backend.jax.alarm`. On a GPU nothing is said from
    inside of a graph: XLA has no way out of there on TensorFlow.
    """
    if tf.executing_eagerly():
        if failed:
            (fail or warn)()
        return None
    if in_program is None:
        return tf.zeros(())
    return tf.cond(failed, lambda: in_program(failed), lambda: tf.zeros(()))


gradients_lose_masks = False


def eagerly():
    """A context in which operations run now, in the midst of a trace."""
    return tf.init_scope()


record_random = generators.record
replay_random = generators.replay


def leaves(layer):
    """Return a key for each trainable tensor of a layer."""
    return {v.value.ref() for v in layer.variables if v.trainable}


def leaf_gradients(layer, call, inputs):
    """Differentiate `sum(call(inputs) ** 2) / 2`, as a training step does.

    See `keras_efficient.backend.jax.leaf_gradients`.
    """
    inputs = tf.nest.map_structure(tf.identity, inputs)
    state = [(v, v.value) for v in layer.variables if not v.trainable]
    with tf.GradientTape() as tape, keras.StatelessScope(state):
        tape.watch(inputs)
        outputs = tf.nest.flatten(call(inputs))
    frozen = {v.value.ref() for v in layer.variables if not v.trainable}
    variables = [v for v in tape.watched_variables() if v.ref() not in frozen]
    gradients, input_gradients = tape.gradient(
        outputs, (variables, inputs), outputs, unconnected_gradients="zero"
    )
    keys = [variable.ref() for variable in variables]
    gradients = map(tf.convert_to_tensor, gradients)
    return dict(zip(keys, gradients)), input_gradients


def run_compiled(fn, args, owner, key):
    """Return `fn(*args)`, computed by an XLA program.

    The program assigns variables in place. It is kept in `owner`; `key` tells
    which variables `fn` reads and assigns.
    """
    # Variables that are spread over replicas are not XLA's.
    if tf.distribute.has_strategy():
        return fn(*args)
    # Not by `setattr`, which would track it for checkpoints.
    programs = owner.__dict__.setdefault("_compiled_programs", {})
    if key not in programs:
        programs[key] = tf.function(fn, jit_compile=True)
    # Slices become dense: their number changes, and XLA would compile anew.
    return programs[key](*tf.nest.map_structure(tf.convert_to_tensor, args))
