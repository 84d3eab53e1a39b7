"""A call of a Keras layer as a pure function of everything that it reads.

`Call` flattens what goes into a call and what comes out of it: tensors apart
from what is not, masks as tensors of their own. What the layer reads besides
its arguments is found while it runs, by `Record` if it is a variable of Keras
and by `backend.Capture` if it is anything else; what it writes comes out as a
result, and is written once by whoever asked for the call.
"""

import functools
import inspect

import keras
import numpy as np
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.attributes import Attributes
from keras_efficient.autodiff.masks import mask_of
from keras_efficient.autodiff.masks import with_mask
from keras_efficient.backend import nested


class Call:
    """One call of a layer: a function of a list of tensors.

    Args:
        layer: A built Keras layer.
        args: Tuple of positional arguments.
        kwargs: Dictionary of keyword arguments, with `training`: in the
            backward pass there are no layers around that would tell.
        standardize: Function of the outputs, applied to them at once.

    Attributes:
        tensors: The tensors among the arguments, then their masks. Whoever
            holds on to the call deletes them (`forget`).
    """

    def __init__(self, layer, args, kwargs, standardize=None):
        self.layer = layer
        self.standardize = standardize
        leaves = nested.flatten((args, kwargs))
        self.structure = nested.skeleton((args, kwargs))
        self.places = [i for i, x in enumerate(leaves) if ops.is_tensor(x)]
        tensors = [leaves[i] for i in self.places]
        for x in tensors:
            _check_dense(layer, x, "is called on")
        masks = [mask_of(x) for x in tensors]
        self.masked = [i for i, m in enumerate(masks) if m is not None]
        self.tensors = tensors + [masks[i] for i in self.masked]
        self.others = [None if ops.is_tensor(x) else x for x in leaves]
        self.attributes = Attributes(layer, kwargs.get("training"))
        self.results = None

    def __call__(self, tensors, scope):
        """Run the layer on tensors that stand for `self.tensors`.

        Args:
            tensors: List of tensors.
            scope: A `Record`.

        Returns:
            List of tensors: outputs, their masks, losses that were added,
            what was left in attributes and new values of variables. `_Results`
            tells them apart.
        """
        args, kwargs = self._arguments(tensors)
        with scope:
            outputs, left = self.attributes.run(
                lambda: self.layer(*args, **kwargs)
            )
            if self.standardize is not None:
                outputs = self.standardize(outputs)
        leaves = nested.flatten(outputs)
        tensors = [y for y in leaves if ops.is_tensor(y)]
        masks = [mask_of(y) for y in tensors]
        found = [m for m in masks if m is not None]
        updates = [scope.state_mapping[key] for key in scope.written]
        results = [*tensors, *found, *scope.losses, *left, *updates]
        if self.results is None:
            self.results = _Results(self.layer, outputs, masks, scope, left)
        elif len(results) != self.results.count:
            raise RuntimeError(_CHANGED.format(self.layer.name))
        return results

    def _arguments(self, tensors):
        n = len(self.places)
        leaves, tensors, masks = list(self.others), tensors[:n], tensors[n:]
        for i, mask in zip(self.masked, masks):
            with_mask(tensors[i], mask)
        for i, x in zip(self.places, tensors):
            leaves[i] = x
        return nested.pack(self.structure, leaves)

    def forget(self):
        """Let go of the tensors, once they have been used."""
        self.tensors = None


class _Results:
    """What the list of results of a `Call` consists of."""

    def __init__(self, layer, outputs, masks, scope, left):
        leaves = nested.flatten(outputs)
        for y in leaves:
            if ops.is_tensor(y):
                _check_dense(layer, y, "returns")
            elif not isinstance(y, _PLAIN):
                raise TypeError(_OPAQUE.format(layer.name, type(y)))
        self.structure = nested.skeleton(outputs)
        self.places = [i for i, y in enumerate(leaves) if ops.is_tensor(y)]
        self.others = [None if ops.is_tensor(y) else y for y in leaves]
        self.masked = [i for i, m in enumerate(masks) if m is not None]
        self.written = list(scope.written.values())
        self.losses = len(self.places) + len(self.masked)  # where they begin
        self.left = self.losses + len(scope.losses)
        self.updates = self.left + len(left)
        self.count = self.updates + len(self.written)

    def outputs(self, results):
        """What the layer returned, with masks."""
        n = len(self.places)
        tensors, masks = results[:n], results[n:]
        for i, mask in zip(self.masked, masks):
            with_mask(tensors[i], mask)
        leaves = list(self.others)
        for i, y in zip(self.places, tensors):
            leaves[i] = y
        return nested.pack(self.structure, leaves)


_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.ndarray)
_PLAIN += (np.generic,)
_OPAQUE = (
    "Layer '{}' returns an object of {}, in which tensors cannot be found. To "
    "be recomputed, it has to return tensors in lists, tuples or dictionaries; "
    "otherwise leave it outside."
)


def _check_dense(layer, x, verb):
    if not backend.is_dense(x):
        raise TypeError(
            f"Layer '{layer.name}' {verb} a sparse or ragged tensor, {type(x)},"
            " whose gradient cannot be recomputed. Make it dense, or leave "
            "the layer outside."
        )


_CHANGED = (
    "Layer '{}' returned another number of tensors when it was recomputed: "
    "what it does depends on something other than its arguments and variables."
    " Leave it outside."
)


def call_arguments(layer, x, shared):
    """Return the keyword arguments for the call of a sub-layer on `x`.

    The mask that came with the inputs of the run is hung on `x`, for what the
    sub-layer calls on it.

    Args:
        layer: A Keras layer.
        x: A tensor, or a nested structure of tensors.
        shared: Dictionary of arguments.
    """
    mask = shared.get(IMPLICIT_MASK)
    if mask is not None and len(getattr(x, "shape", ())) > len(mask.shape):
        sizes = zip(x.shape, mask.shape)
        if all(m == n or None in (m, n) for m, n in sizes):
            with_mask(x, mask)
    return accepted(layer, shared)


# Among the arguments of sub-layers, the mask that hangs on the inputs.
IMPLICIT_MASK = "keras_mask"
# And a list of dictionaries, the arguments of each block by itself.
BLOCK_ARGUMENTS = "block_arguments"


def arguments_of_block(shared, number):
    """The part of a dictionary of arguments that one block of a run gets."""
    if BLOCK_ARGUMENTS not in shared:
        return shared
    own = shared[BLOCK_ARGUMENTS][number]
    rest = {k: x for k, x in shared.items() if k != BLOCK_ARGUMENTS}
    return {**rest, **own}


def accepted(layer, arguments):
    """The part of a dictionary of arguments that `layer` takes.

    It takes what its `call` has a name for, and any argument but a mask if
    that ends in `**kwargs`. (A `Sequential` ends so, but hands nothing on.)
    """
    if hasattr(layer, "takes"):
        return {k: x for k, x in arguments.items() if layer.takes(k)}
    names, takes_any = _argument_names(type(layer).call)
    takes_any &= not isinstance(layer, keras.Model)
    return {
        name: x
        for name, x in arguments.items()
        if name in names or (takes_any and name not in ("mask", IMPLICIT_MASK))
    }


@functools.cache
def _argument_names(call):
    parameters = inspect.signature(call).parameters
    kinds = [p.kind for p in parameters.values()]
    return parameters.keys(), inspect.Parameter.VAR_KEYWORD in kinds
