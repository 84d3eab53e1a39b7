"""The backward pass of one block: its calls, repeated and differentiated."""

import keras

from keras_efficient import backend
from keras_efficient.autodiff.functional_call import accepted
from keras_efficient.backend import nested


class Replay:
    """The argument `vjp` of `ReversibleLayer.pull_back`.

    `vjp(layer, x)` repeats the call of a sub-layer, with the state and the
    random numbers of the forward pass, and returns `(y, pullback)`. The
    cotangents of parameters are collected on the way.

    Args:
        pure: The `PureBlock`.
        params: Values of its trainable variables.
        own_state: Values of those non-trainable variables that belong to no
            sub-layer.
        calls: `(layer, (functional layer, record, cotangents of losses))`
            of each call of the forward pass.
        shared: Dictionary of call arguments for sub-layers.
    """

    def __init__(self, pure, params, own_state, calls, shared):
        self.pure = pure
        self.remaining = list(calls)
        self.value_of = {id(v): p for v, p in zip(pure.params, params)}
        self.own_state = list(zip(pure.own_state, own_state))
        self.shared = shared
        self.d_params = {}
        self.d_shared = nested.map_structure(lambda _: None, shared)

    def pull_back(self, known, d_outputs):
        """Run `pull_back` of the block, its own variables at their values."""
        variables = self.pure.own_params
        with self._scope(variables, self._values(variables)):
            result = self.pure.block.pull_back(known, d_outputs, self)
        if self.remaining:
            raise ValueError(_MISMATCH.format(layer=self.remaining[-1][0].name))
        return result

    def __call__(self, layer, x):
        functional, record, d_losses = _pop(self.remaining, layer)
        pure = self.pure
        known = accepted(layer, self.shared)

        def fn(params, x, shared):
            y, losses = functional.replay(params, record, x, shared)
            return pure.block.standardize(y), losses

        (y, _), pull = backend.vjp(
            fn, self._values(functional.params), pure.read(x), known
        )

        def pullback(d_y):
            d_params, d_x, d_known = pull((d_y, d_losses))
            self._add(functional.params, d_params)
            for name, d in d_known.items():
                self.d_shared[name] = nested.map_structure(
                    add, self.d_shared[name], d
                )
            return d_x

        return pure.write(y), pullback

    def add(self, variable, cotangent):
        """Take the cotangent of a variable that belongs to no sub-layer."""
        self._add([variable], [cotangent])

    def derive(self, block, outputs, d_outputs):
        """The pull-back that follows from `couple` and `uncouple` alone.

        `uncouple` evaluates each sub-layer once and so reconstructs the
        inputs. At these inputs `couple` is differentiated; where it calls a
        sub-layer, that value is taken again, with its pullback.
        """
        evaluated = []

        def evaluate(layer, x):
            y, pullback = self(layer, x)
            evaluated.append((layer, (self.pure.read(y), pullback)))
            return y

        inputs = block.uncouple(outputs, evaluate)
        variables = self.pure.own_params

        def couple(params, streams):
            def again(layer, x):
                y, pullback = _pop(evaluated, layer)
                given = backend.custom_vjp(
                    lambda x: (y, ()), lambda _, d_y: (pullback(d_y),)
                )
                return given(x)

            with self._scope(variables, params):
                return block.couple(streams, again)

        _, pull = backend.vjp(
            couple, self._values(variables), self.pure.read(inputs)
        )
        d_own, d_inputs = pull(d_outputs)
        self._add(variables, d_own)
        return inputs, d_inputs

    def _scope(self, variables, values):
        return keras.StatelessScope([*zip(variables, values), *self.own_state])

    def _values(self, variables):
        return [self.value_of[id(v)] for v in variables]

    def _add(self, variables, cotangents):
        for v, d in zip(variables, cotangents):
            self.d_params[id(v)] = add(self.d_params.get(id(v)), d)


_MISMATCH = (
    "`uncouple` must evaluate each sub-layer exactly as often as `couple` "
    "does, at the same points and in the reverse order, or the gradient of a "
    "call is lost. It does not for sub-layer '{layer}'."
)


def _pop(entries, layer):
    """Take the last entry of `layer` out of a list of `(layer, entry)`."""
    for i in reversed(range(len(entries))):
        if entries[i][0] is layer:
            return entries.pop(i)[1]
    raise ValueError(_MISMATCH.format(layer=layer.name))


def add(a, b):
    """Add two cotangents; `None` is zero."""
    return b if a is None else a if b is None else a + b
