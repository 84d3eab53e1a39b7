"""A Keras layer as a pure function of its variables."""

import functools
import inspect

import keras
from keras import ops

from keras_efficient import backend


def values(variables):
    """Read `variables` as tensors, so that gradients flow back to them."""
    return [ops.convert_to_tensor(variable.value) for variable in variables]


def call_layer(layer, x, shared, options):
    """Call `layer` on `x` with those further arguments that it knows.

    Args:
        layer: A Keras layer.
        x: Nested structure of tensors.
        shared: Dictionary of nested structures of tensors.
        options: Dictionary of arguments that are not tensors. Of these
            `"training"` is given to every layer, since Keras hands it on to
            the layers inside.
    """
    known = accepted(layer, {**shared, **options})
    return layer(x, **{**known, "training": options["training"]})


def accepted(layer, arguments):
    """The part of a dictionary that `layer.call` has names for."""
    names = _argument_names(type(layer).call)
    return {name: arguments[name] for name in arguments if name in names}


@functools.cache
def _argument_names(call):
    return frozenset(inspect.signature(call).parameters)


class FunctionalLayer:
    """A built Keras layer whose calls can be repeated.

    Args:
        layer: A built Keras layer.
        options: Dictionary of call arguments that are not tensors.
    """

    def __init__(self, layer, options):
        self.layer = layer
        self.options = options
        self.params = layer.trainable_variables
        self.state = layer.non_trainable_variables

    def __call__(self, x, shared):
        return call_layer(self.layer, x, shared, self.options)

    def record(self, scope, x, shared):
        """Call the layer under `scope`, which holds values of its variables.

        Args:
            scope: The active `keras.StatelessScope`. It takes up what the
                layer assigns.
            x: Nested structure of tensors.
            shared: Dictionary of further call arguments. The layer receives
                those that its `call` knows.

        Returns:
            `(y, losses, record)`: the output, the list of the losses that
            the layer added, and what `replay` needs besides parameters and
            inputs: state (batch statistics, seeds) and random numbers.
        """
        before = self._current_state(scope)
        known = len(scope.losses)
        y, random = backend.record_random(lambda: self(x, shared))
        # What the call changed is soon assigned in place: keep a copy.
        before = [
            old if old is new else ops.copy(old)
            for old, new in zip(before, self._current_state(scope))
        ]
        return y, scope.losses[known:], (before, random)

    def _current_state(self, scope):
        return [scope.get_current_value(variable) for variable in self.state]

    def replay(self, params, record, x, shared):
        """Repeat a call: a pure function of its arguments.

        What the layer assigns is dropped, since `record` has kept it already.

        Returns:
            `(y, losses)`, as `record`.
        """
        state, random = record
        scope = keras.StatelessScope(
            zip(self.params + self.state, [*params, *state]),
            collect_losses=True,
        )
        with backend.replay_random(random), scope:
            y = self(x, shared)
        return y, scope.losses
