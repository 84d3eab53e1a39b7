"""The calls of layers that a functional model consists of, written down.

Keras has no public list of them. So the model is cloned with a function that
writes each call down instead of making it: the clone is a graph of `GraphCall`,
each of them called once, so that `input` and `output` tell what it takes and
makes. The model and its layers get no further nodes.
"""

import itertools

import keras

from keras_efficient.backend import nested


class GraphCall(keras.Operation):
    """One call of a layer or operation of a model.

    Attributes:
        operation: What is called.
        args, kwargs: Arguments, with symbolic tensors where tensors come.
    """

    def __init__(self, operation, args, kwargs, name):
        super().__init__(name=name)
        self.operation = operation
        self.args = args
        self.kwargs = kwargs

    def compute_output_spec(self, *args, **kwargs):
        return self.operation.compute_output_spec(*args, **kwargs)

    @property
    def reads(self):
        return keras.tree.flatten(self.input)

    @property
    def makes(self):
        return keras.tree.flatten(self.output)

    def run(self, tensors, training, **others):
        """Call it on what a dictionary has for the ids of symbolic tensors.

        Args:
            tensors: The dictionary.
            training: Python bool or `None`.
            **others: Further arguments.
        """

        def fill(x):
            is_symbol = isinstance(x, keras.KerasTensor)
            return tensors[id(x)] if is_symbol else x

        args = nested.map_structure(fill, self.args)
        kwargs = nested.map_structure(fill, self.kwargs)
        # As a functional model does, whatever was given when it was made.
        if training is not None and isinstance(
            self.operation, keras.layers.Layer
        ):
            kwargs["training"] = training
        return self.operation(*args, **kwargs, **others)


def record_calls(graph):
    """Write down the calls of a graph.

    Args:
        graph: A functional `keras.Model`.

    Returns:
        A functional model of `GraphCall`s, with inputs and outputs like those
        of `graph`, and the list of the calls in an order to run them.
    """
    numbers = itertools.count()

    def record(operation, *args, **kwargs):
        name = f"call_{next(numbers)}"
        return GraphCall(operation, args, kwargs, name)(*args, **kwargs)

    copies = {
        id(x.output): type(x).from_config(x.get_config()).output
        for x in graph.operations
        if isinstance(x, keras.layers.InputLayer)
    }
    model = keras.models.clone_model(
        # Without the class, and what that may do when it is cloned.
        keras.Model(graph.input, graph.output, name=graph.name),
        input_tensors=keras.tree.map_structure(
            lambda x: copies[id(x)], graph.input
        ),
        clone_function=lambda operation: operation,
        call_function=record,
    )
    return model, [x for x in model.operations if isinstance(x, GraphCall)]
