"""What stands for `call` in a model that recomputes.

It sits in the `__dict__` of an instance, where it hides the method of its
class: nothing is tracked, nothing is saved, and deleting it undoes it.
"""

import functools

import keras

from keras_efficient.autodiff.capture import Call
from keras_efficient.autodiff.recompute import recompute
from keras_efficient.backend import nested
from keras_efficient.conversion.layer_tree import all_layers
from keras_efficient.conversion.layer_tree import graph_of


class _Replacement:
    """Stands for a method of a layer.

    Args:
        layer: A Keras layer.
        name: String, the name of the method.
        modes: The values of `training` to recompute at: `True`, and all where
            layers may not be told that they are in training.
        store: How what goes into a segment is kept, one of `storage.STORES`.
    """

    def __init__(self, layer, name, modes, store):
        hidden = getattr(layer, name)
        functools.update_wrapper(self, hidden)  # with its signature
        self.hidden = hidden
        self.layer = layer
        self.name = name
        self.modes = modes
        self.store = store

    def install(self):
        vars(self.layer)[self.name] = self


def restore(layer):
    """Take out what stands for methods of a layer, and return it."""
    found = [x for x in vars(layer).values() if isinstance(x, _Replacement)]
    for replacement in found:
        del vars(layer)[replacement.name]
    return found


def is_recomputed(layer):
    return any(isinstance(x, _Replacement) for x in vars(layer).values())


def recomputed(run, arguments, body, training):
    """Return `run(*args, **kwargs)`, and keep only what goes into it.

    Args:
        run: Function that calls layers.
        arguments: The pair `(args, kwargs)`.
        body: `_Body` of these layers.
        training: Boolean or `None`, for the layers inside.
    """
    # Keras refuses arguments in which tensors and others are mixed.
    leaves, structure = nested.flatten(arguments), nested.skeleton(arguments)
    others = [None if keras.ops.is_tensor(x) else x for x in leaves]
    places = [i for i, x in enumerate(leaves) if keras.ops.is_tensor(x)]

    def repeat(tensors):
        leaves = list(others)
        for i, x in zip(places, tensors):
            leaves[i] = x
        args, kwargs = nested.pack(structure, leaves)
        return run(*args, **kwargs)

    tensors = [leaves[i] for i in places]
    settings = {"run": repeat, "training": training}
    known = [v for layer in body.inside for v in layer.variables]
    call = functools.partial(Call, body, (tensors,), settings)
    return recompute([call], known, body.store)


def as_it_is(run, arguments, body, training):
    """Return `run(*args, **kwargs)`."""
    args, kwargs = arguments
    return run(*args, **kwargs)


class RecomputedCall(_Replacement):
    """Stands for `layer.call`, and recomputes it in training.

    Attributes:
        way: Function that runs a segment: `recomputed`, or `as_it_is`.
    """

    way = staticmethod(recomputed)
    body = None

    def __call__(self, *args, **kwargs):
        training = _training()
        if training not in self.modes:
            return self.hidden(*args, **kwargs)
        arguments = args, kwargs
        return self.way(self.hidden, arguments, self._body(), training)

    def _body(self):
        layer = self.layer
        # A functional model reads no variables itself, and casts its inputs.
        autocast = layer.autocast and not isinstance(layer, keras.Function)
        # That of the layer may be one of `quantize`, now or later.
        policy = layer.compute_dtype
        if policy != layer.variable_dtype:
            policy = f"mixed_{policy}"
        if self.body is None or self.body.dtype_policy.name != policy:
            self.body = _Body(
                [layer], self.store, dtype=policy, autocast=autocast
            )
        return self.body

    @property
    def segments(self):
        return [self]


class RecomputedGraph(_Replacement):
    """Stands for `call` of a functional model, which it runs in segments.

    Args:
        model: A functional or sequential model.
        calls: Functional model of `GraphCall`s.
        segments: List of pairs of a list of `GraphCall`s and the function that
            runs them, `recomputed` or `as_it_is`, in the order to run.
        modes, store: As above.
    """

    def __init__(self, model, calls, segments, modes, store):
        super().__init__(model, "call", modes, store)
        self.outputs = model.outputs
        self.run = _Run(calls, segments, store)
        outputs = self.run(calls.inputs)
        self.model = keras.Model(
            calls.input,
            keras.tree.pack_sequence_as(calls.output, outputs),
            name=model.name,
        )

    def __call__(self, inputs, training=None, mask=None, **kwargs):
        # `add` and `pop` change what a sequential model is.
        changed = self.layer.outputs[0] is not self.outputs[0]
        if training not in self.modes or kwargs or changed:
            return self.hidden(inputs, training=training, mask=mask, **kwargs)
        return self.model.call(inputs, training=training, mask=mask)

    @property
    def segments(self):
        """Those that are recomputed, or may be."""
        segments = self.run.segments
        return [x for x in segments if x.way is not as_it_is]


class _Run(keras.layers.Layer):
    """Runs the segments of a graph: from a list of tensors to another."""

    def __init__(self, calls, segments, store):
        super().__init__(autocast=False, name="segments")
        last = {id(x): len(segments) for x in calls.outputs}
        for i, (part, _) in reversed(list(enumerate(segments))):
            for x in (x for call in part for x in call.reads):
                last.setdefault(id(x), i)
        segments = [
            _Segment(part, {k for k, j in last.items() if j > i}, way, store)
            for i, (part, way) in enumerate(segments)
        ]
        # Not tracked.
        vars(self).update(graph=calls, segments=segments)
        self.built = self.supports_masking = True

    def call(self, inputs, training=None):
        tensors = dict(zip(map(id, self.graph.inputs), inputs))
        for segment in self.segments:
            segment(tensors, training)
        return [tensors[id(x)] for x in self.graph.outputs]

    def compute_output_spec(self, inputs, training=None):
        return [keras.KerasTensor(x.shape, x.dtype) for x in self.graph.outputs]

    def compute_mask(self, inputs, previous_mask):
        return None  # the layers have hung theirs on their outputs


class _Segment:
    """Calls of layers that are run as one.

    Args:
        calls: List of `GraphCall`s.
        later: Set of the ids of symbolic tensors that are read afterwards.
        way: Function that runs it: `recomputed`, or `as_it_is`.
        store: How its inputs are kept.
    """

    def __init__(self, calls, later, way, store):
        self.calls = calls
        made = [id(x) for call in calls for x in call.makes]
        read = [id(x) for call in calls for x in call.reads]
        self.inputs = list(dict.fromkeys(x for x in read if x not in made))
        self.outputs = [x for x in made if x in later]
        layers = [call.operation for call in calls]
        layers = [x for x in layers if isinstance(x, keras.layers.Layer)]
        # Operations alone have no variables, and no one to take losses.
        self.way = way if layers else as_it_is
        self.body = _Body(layers, store, autocast=False)

    def __call__(self, tensors, training):
        """Add what the segment makes to a dictionary of tensors by ids."""
        run = functools.partial(self.run, training=training)
        values = [tensors[key] for key in self.inputs]
        outputs = self.way(run, ([values], {}), self.body, training)
        # What nobody reads later is let go.
        tensors.update(zip(self.outputs, outputs))

    def run(self, values, training):
        tensors = dict(zip(self.inputs, values))
        for call in self.calls:
            outputs = call.run(tensors, training)
            keys = map(id, call.makes)
            tensors.update(zip(keys, keras.tree.flatten(outputs)))
        return [tensors[key] for key in self.outputs]


class _Body(keras.layers.Layer):
    """Runs a function of layers as Keras runs `call`, in repetitions, too.

    In the backward pass there is nothing around that would set `training` and
    the dtype. The layers themselves are not entered twice, so that what Keras
    does around `call` is done once.
    """

    def __init__(self, layers, store, **settings):
        super().__init__(name="segment", **settings)
        vars(self)["inside"] = layers  # not tracked
        self.store = store
        self.built = self.supports_masking = True

    def call(self, tensors, run=None, training=None):
        return run(tensors)

    def compute_mask(self, inputs, previous_mask):
        return None  # the layers have hung theirs on their outputs

    def add_loss(self, loss):
        # Functional models take none.
        layers = (x for layer in self.inside for x in all_layers(layer))
        next(x for x in layers if graph_of(x) is None).add_loss(loss)


class _Training(keras.layers.Layer):
    """Tells the `training` of the layers around it."""

    def __init__(self):
        super().__init__(autocast=False, name="training")
        self.built = True

    def call(self, training=None):
        return training


_training = _Training()
