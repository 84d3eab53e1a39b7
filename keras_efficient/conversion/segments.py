"""What stands for `call` in a model that recomputes.

Both sit in the `__dict__` of an instance, where they hide the method of its
class: nothing is tracked, nothing is saved, and deleting them undoes it.
"""

import functools

import keras

from keras_efficient.autodiff.capture import Call
from keras_efficient.autodiff.recompute import recompute
from keras_efficient.backend import nested


class RecomputedCall:
    """Stands for `layer.call`, and recomputes it in training.

    Args:
        layer: A built Keras layer.
        modes: The values of `training` to recompute at: `True`, and all where
            layers may not be told that they are in training.
    """

    name = "call"

    def __init__(self, layer, modes):
        functools.update_wrapper(self, layer.call)  # with its signature
        self.layer = layer
        self.modes = modes
        self.hidden = layer.call

    def __call__(self, *args, **kwargs):
        training = _training()
        if training not in self.modes:
            return self.hidden(*args, **kwargs)
        layer = self.layer
        return _recompute(
            self.hidden,
            (args, kwargs),
            layers=[layer],
            training=training,
            dtype=layer.dtype_policy,
            autocast=layer.autocast,
        )


class RecomputedGraph:
    """Stands for the method by which a functional model runs its graph.

    Args:
        graph: A `keras.Function`.
        modes: As for `RecomputedCall`.
        segments: List of `(nodes, recomputed)`, in the order to run.
    """

    name = "_run_through_graph"

    def __init__(self, graph, modes, segments):
        self.graph = graph
        self.modes = modes
        self.hidden = graph._run_through_graph
        last = {id(x): len(segments) for x in graph.outputs}
        for i, (nodes, _) in reversed(list(enumerate(segments))):
            for node in nodes:
                for x in node.input_tensors:
                    last.setdefault(id(x), i)
        self.segments = [
            _Segment(nodes, recomputed, [k for k, j in last.items() if j > i])
            for i, (nodes, recomputed) in enumerate(segments)
        ]

    def __call__(self, inputs, operation_fn=lambda op: op, call_fn=None):
        inputs = keras.tree.flatten(inputs)
        # What a layer of the graph would be told.
        training = operation_fn(_training)()
        symbolic = any(isinstance(x, keras.KerasTensor) for x in inputs)
        if symbolic or call_fn is not None or training not in self.modes:
            return self.hidden(inputs, operation_fn, call_fn)
        tensors = dict(zip(map(id, self.graph.inputs), inputs))
        for segment in self.segments:
            segment(tensors, operation_fn, training)
        outputs = [tensors[id(x)] for x in self.graph.outputs]
        return keras.tree.pack_sequence_as(self.graph.output, outputs)


class _Segment:
    """Calls of layers that are run as one.

    Args:
        nodes: List of nodes of the graph.
        recomputed: Boolean.
        later: List of the ids of symbolic tensors that are read afterwards.
    """

    def __init__(self, nodes, recomputed, later):
        self.nodes = nodes
        self.recomputed = recomputed
        made = [id(x) for node in nodes for x in node.outputs]
        read = [id(x) for node in nodes for x in node.input_tensors]
        self.inputs = list(dict.fromkeys(x for x in read if x not in made))
        self.outputs = [x for x in made if x in set(later)]
        layers = [node.operation for node in nodes]
        self.layers = [x for x in layers if isinstance(x, keras.layers.Layer)]

    def __call__(self, tensors, operation_fn, training):
        """Add what the segment makes to a dictionary of tensors by ids."""
        values = [tensors[key] for key in self.inputs]
        run = functools.partial(self.run, operation_fn=operation_fn)
        if self.recomputed and self.layers:
            outputs = _recompute(
                run, ([values], {}), self.layers, training, autocast=False
            )
        else:
            outputs = run(values)
        tensors.update(zip(self.outputs, outputs))

    def run(self, values, operation_fn):
        tensors = dict(zip(self.inputs, values))
        for node in self.nodes:
            args, kwargs = node.arguments.fill_in(tensors)
            outputs = operation_fn(node.operation)(*args, **kwargs)
            keys = map(id, node.outputs)
            tensors.update(zip(keys, keras.tree.flatten(outputs)))
        return [tensors[key] for key in self.outputs]


def _recompute(run, arguments, layers, training, **settings):
    """Return `run(*args, **kwargs)`, and keep only what goes into it.

    Args:
        run: Function that calls `layers`.
        arguments: The pair `(args, kwargs)`.
        layers: List of layers. The last one takes the losses that are added:
            a functional model takes none of its own.
        training: Boolean or `None`, for the layers inside.
        **settings: Arguments of a layer that are those of the call.
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

    body = _Body(repeat, owner=layers[-1], name="segment", **settings)
    tensors = [leaves[i] for i in places]
    return recompute(
        [lambda: Call(body, (tensors,), {}, training)],
        [v for layer in layers for v in layer.variables],
    )


class _Body(keras.layers.Layer):
    """Runs a function as Keras runs `call`, when it is repeated, too.

    In the backward pass there is nothing around that would set `training` and
    the dtype. The layer itself is not entered twice, so that what Keras does
    around `call` is done once.
    """

    def __init__(self, run, owner, **settings):
        super().__init__(**settings)
        self.__dict__.update(run=run, owner=owner)  # not tracked
        self._convert_input_args = False  # they have been
        self.built = self.supports_masking = True

    def call(self, tensors, training=None):
        return self.run(tensors)

    def compute_mask(self, inputs, previous_mask):
        return None  # the layers have hung theirs on their outputs

    def add_loss(self, loss):
        self.owner.add_loss(loss)


class _Training(keras.layers.Layer):
    """Tells the `training` of the layers around it."""

    def __init__(self):
        super().__init__(autocast=False, name="training")
        self.built = True

    def call(self, training=None):
        return training


_training = _Training()
