"""Whether a call, when it is repeated, returns what it has returned.

What a layer draws from a generator of its own, or counts in an attribute of
Python, is seen by nobody. So the first time that the calls of a layer are
repeated, a few of the numbers are compared, where Python runs the program. (In
a compiled one the calls are traced: what Python computes is a constant.)
"""

import weakref

from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.reconstruction_check import sample

# Kernels that add in any order err by less, relative to the largest number.
TOLERANCE = 0.03

_compared = weakref.WeakSet()


def keep(layer, results):
    """Return samples of the results, or `None` if nothing is to be compared."""
    if layer in _compared or not all(map(backend.is_concrete, results)):
        return None
    return [ops.copy(sample(y)) for y in map(backend.stop_gradient, results)]


def compare(layer, kept, results):
    """Raise a `ValueError` if results are not those that `keep` saw."""
    _compared.add(layer)
    for a, b in zip(kept, map(sample, map(backend.stop_gradient, results))):
        largest = ops.max(ops.abs(a), initial=0.0)
        if ops.any(ops.abs(a - b) > TOLERANCE * largest):
            _compared.discard(layer)
            raise ValueError(_OTHERS.format(layer.name))


_OTHERS = (
    "Layer '{}' returned other numbers when its call was repeated in the "
    "backward pass, so that the gradient would be wrong. It draws from a "
    "generator that nobody knows of (a `numpy.random.Generator`, ...), or "
    "reads what its calls change (an attribute, an array). Draw with "
    "`keras.random`, make what changes a variable (`self.add_weight`), or "
    "leave the layer outside."
)
