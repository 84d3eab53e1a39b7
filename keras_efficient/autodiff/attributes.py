"""Tensors that a call leaves in attributes, such as `self.auxiliary_loss`.

They leave by another way than the outputs, and have a gradient as those have.
In which attributes, of a layer and of those inside, is found out once for each
layer, at its first call in training and at its first call in inference.
"""

import contextlib
import functools
import weakref

import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.backend import nested
from keras_efficient.backend.layers_inside import layers_inside

# For each layer, by `training`: list of references to owners, and of names.
_known = weakref.WeakKeyDictionary()
_ABSENT = object()
# Where modules of PyTorch, which its layers are, have variables.
_OF_MODULES = ("_parameters", "_buffers")


class Attributes:
    """The attributes in which a call of a layer leaves tensors.

    Args:
        layer: A Keras layer.
        training: Boolean or `None`.

    Attributes:
        places: List of tuples of an owner and a name; `None` before the call.
    """

    def __init__(self, layer, training):
        self.layer = layer
        self.training = training
        self.places = None
        self.begun = None

    def run(self, call):
        """Return what `call()` returns, and the list of tensors that it leaves.

        The first time they are taken away, and `takers` put back those that
        have a gradient. When the call is repeated, it begins with what there
        was, and changes nothing.
        """
        if self.places is None:
            return self._first(call)
        now = [vars(owner).get(name, _ABSENT) for owner, name in self.places]
        self._put(get() for get in self.begun)
        outputs = call()
        left = [vars(owner).get(name) for owner, name in self.places]
        self._put(now)
        return outputs, list(filter(_is_value, left))

    def _first(self, call):
        known = _known.setdefault(self.layer, {})
        if self.training in known:
            places = [(owner(), name) for owner, name in known[self.training]]
            places = [place for place in places if place[0] is not None]
            before = _copies(owner for owner, _ in places)
            outputs = call()
        else:
            owners = layers_inside(self.layer)
            before, held = _copies(owners), _in_containers(owners)
            outputs = call()
            _check(self.layer, held, _in_containers(layers_inside(self.layer)))
            places = _places_in(self.layer)
        left = _left(places, before)
        self.places = [(owner, name) for owner, name, _ in left]
        self.begun = [lambda old=old: old for *_, old in left]
        known.setdefault(
            self.training, [(weakref.ref(x), name) for x, name in self.places]
        )
        return outputs, [vars(owner).pop(name) for owner, name in self.places]

    def let_go(self):
        """Hold no longer what tensors of earlier calls were computed from."""
        self.begun = [_reference(get()) for get in self.begun]

    def takers(self):
        """Return functions that put one tensor each into its place."""
        return [
            functools.partial(vars(owner).__setitem__, name)
            for owner, name in self.places
        ]

    def _put(self, values):
        for (owner, name), value in zip(self.places, values):
            _put(owner, name, value)


@contextlib.contextmanager
def without_attributes(layer):
    """Within, symbolic calls leave nothing in attributes: it has no values."""
    before = _copies(layers_inside(layer))
    yield
    for place in _left(_places_in(layer), before):
        _put(*place)


def _copies(owners):
    return {id(owner): dict(vars(owner)) for owner in owners}


def _places_in(layer):
    owners = layers_inside(layer)
    return [(owner, name) for owner in owners for name in vars(owner)]


def _left(places, before):
    """List owners, names and earlier values of attributes with new tensors."""
    found = []
    for owner, name in places:
        old = before.get(id(owner), {}).get(name, _ABSENT)
        new = vars(owner).get(name)
        if _is_value(new) and new is not old:
            found.append((owner, name, old))
    return found


def _put(owner, name, value):
    if value is _ABSENT:
        vars(owner).pop(name, None)
    else:
        vars(owner)[name] = value


def _is_value(x):
    return ops.is_tensor(x) and not isinstance(x, keras.Variable)


def _reference(x):
    """Return a function that returns `x`.

    A tensor of an earlier call it returns itself while somebody holds it (what
    the call has read is captured), else its value.
    """
    if not _is_value(x) or not backend.is_concrete(x):
        return lambda: x
    itself, value = weakref.ref(x), backend.stop_gradient(x)
    return lambda: value if itself() is None else itself()


def _in_containers(owners):
    """Return the tensors in lists and dictionaries, by their ids."""
    return {
        id(x): x
        for owner in owners
        for name, value in vars(owner).items()
        if isinstance(value, (list, tuple, dict)) and name not in _OF_MODULES
        for x in nested.flatten(value)
        if _is_value(x)
    }


def _check(layer, before, after):
    if after.keys() - before.keys():
        raise TypeError(
            f"Layer '{layer.name}', or one inside, puts tensors into a list or "
            "a dictionary when it is called, where the gradient through them "
            "would be lost if it is recomputed. Return them, leave them in "
            "attributes of their own (`self.scores = scores`), hand a loss to "
            "`add_loss`, or leave the layer outside."
        )
