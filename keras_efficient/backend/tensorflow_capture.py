"""How a call is captured and a run recomputed, on TensorFlow."""

import contextlib

import tensorflow as tf

from keras_efficient.backend.tensorflow import record_random
from keras_efficient.backend.tensorflow import replay_random
from keras_efficient.backend.tensorflow import segment
from keras_efficient.backend.tensorflow_watch import refuse_unrepeatable

gradients_flow_through_assignments = False


def place():
    """Return a function from nothing to a context, which leads back here from
    the inside of a branch."""
    if tf.executing_eagerly():
        return contextlib.nullcontext
    return tf.compat.v1.get_default_graph().as_default


def is_dense(x):
    return isinstance(x, (tf.Tensor, tf.Variable))


def is_float(x):
    return x.dtype.is_floating


def is_traced(x):
    return False


def is_concrete(x):
    """Whether `x` has its values already."""
    return tf.executing_eagerly() and hasattr(x, "numpy")


def as_tensor(value):
    """Read a variable of TensorFlow; what is written later stays out."""
    return tf.convert_to_tensor(value)


def stopped(variable, live):
    """What the forward pass sees of a variable.

    One that is not trained stays on the tape of the caller, who may watch it
    all the same.
    """
    return tf.stop_gradient(live) if needs_gradient(variable, live) else live


def copied(x):
    return x  # reading a variable has copied it


def needs_gradient(variable, live):
    return variable.trainable and live.dtype.is_floating


stop_gradient = tf.stop_gradient


@tf.custom_gradient
def link(leaf, value):
    return tf.identity(value), lambda d: (d, None)


class Capture:
    """Run a call, and find out what it reads.

    It runs on tensors and variables of which no tape knows. What else it
    closes over stays on the tape of the caller, see `recomputed`.

    Args:
        call: A `keras_efficient.autodiff.capture.Call`.
        tensors: List of its arguments.
        record: A `Record`, to be entered.

    Attributes:
        results: What the call returned.
        reads: What it read.
        natives: List of live tensors; none here.
    """

    natives = ()

    def __init__(self, call, tensors, record):
        self.call = call
        if not tf.executing_eagerly():
            record.delay = lambda value: _when_there(value, tensors)
        with refuse_unrepeatable(call.layer):
            self.results, self.random = record_random(
                lambda: call(tensors, record)
            )
        self.variables = [record.variables[key] for key in record.first]
        self.through = record.through
        self.record = type(record)
        self.reads = list(record.first.values())

    def vjp(self, tensors, reads, needed, wanted):
        """Repeat the call, to be differentiated.

        Args:
            tensors: Arguments.
            reads: What it read.
            needed: For each of `reads`, whether it needs a gradient.
            wanted: For each result, whether it may have a cotangent.

        Returns:
            The results, and a function from their cotangents (`None` is zero)
            to lists of those of tensors and of reads, to be called once.
        """
        values = [tf.identity(x) for x in (*tensors, *reads)]
        needed = [True] * len(tensors) + needed
        places = [
            i
            for i, (x, need) in enumerate(zip(values, needed))
            if need and x.dtype.is_floating
        ]
        inputs = [values[i] for i in places]
        n = len(tensors)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            scope = self.record(zip(self.variables, values[n:]), self.through)
            with replay_random(self.random):
                results = self.call(values[:n], scope)

        def pullback(cotangents):
            pairs = [
                (y, d)
                for y, d in zip(results, cotangents)
                if d is not None and y.dtype.is_floating
            ]
            found = [None] * len(values)
            ys, ds = [y for y, _ in pairs], [d for _, d in pairs]
            for i, d in zip(places, tape.gradient(ys, inputs, ds)):
                # Those of an embedding come as slices.
                found[i] = d if d is None else tf.convert_to_tensor(d)
            return found[:n], found[n:]

        return results, pullback


def _when_there(value, tensors):
    """Return a seed not before `tensors` are there; let all else pass.

    Left alone, the random numbers of all layers are drawn at the start.
    """
    if value.dtype.is_floating:
        return value
    return segment(tf.identity, value, after=tensors)
