"""How a run is recomputed, on TensorFlow."""

import tensorflow as tf

from keras_efficient.backend.errors import NO_HOST
from keras_efficient.backend.tensorflow import once_differentiable


def recomputed(tape, tensors):
    """Run `tape.trace`, and take its derivative from `tape.backward`.

    The forward pass runs outside of the node, on tensors without a past. If a
    layer reads what nobody knows of (a closure, a variable of TensorFlow), the
    tape of the caller has recorded what came of it, and the gradient from
    there is added.

    Args:
        tape: A `keras_efficient.autodiff.tape.Tape`.
        tensors: List of tensors.

    Returns:
        What `tape.trace` returns.
    """
    tensors = [tf.convert_to_tensor(x) for x in tensors]
    given = [tf.stop_gradient(x) for x in tensors]
    results = tape.trace(given)
    sources, kept = tape.sources, tape.kept
    tape.kept = tape.sources = None
    values = [tf.stop_gradient(x) for x in results]
    outputs, given = tape.hand_over(values, given)
    connected = None

    @tf.custom_gradient
    def node(*leaves):
        def gradient(*d_results, variables=None):
            d_results = [
                d if x.dtype.is_floating else None
                for x, d in zip(values, d_results)
            ]
            backward = tape.backward(outputs, given, kept, None, d_results)
            d_sources = backward.walk(leaves[len(tensors) :])
            found = [*backward.arguments(), *d_sources]
            found = once_differentiable(found, connected)
            return (found, [None] * len(variables)) if variables else found

        return [tf.identity(x) for x in values], gradient

    connected = node(*tensors, *sources)
    return [
        _join(x, taped) if x.dtype.is_floating else x
        for x, taped in zip(connected, results)
    ]


@tf.custom_gradient
def _join(replayed, taped):
    return tf.identity(replayed), lambda d: (d, d)


def to_host(x):
    devices = {
        device.device_type for device in tf.config.list_logical_devices()
    }
    if devices != {"CPU"}:
        raise NotImplementedError(NO_HOST.format("TensorFlow"))
    return x, lambda x: x
