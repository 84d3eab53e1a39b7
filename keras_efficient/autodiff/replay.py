"""The backward pass of one block: its calls, repeated and differentiated."""

from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.record import Record
from keras_efficient.backend import nested


class Replay:
    """The argument `vjp` of `ReversibleLayer.pull_back`.

    `vjp(layer, x)` repeats the call of a sub-layer, with the state and the
    random numbers of the forward pass, and returns `(y, pullback)`. The
    cotangents of what it read are collected on the way.

    Args:
        backward: The `Backward` that the block is a step of.
        one: The `Pass` of the block.
    """

    def __init__(self, backward, one):
        self.backward = backward
        self.run = backward.tape
        self.block = one.block
        self.remaining = [(entry.call.layer, entry) for entry in one.entries]
        self.own = [
            (variable, backward.value(slot), key)
            for variable, (slot, key) in one.own.values()
        ]

    def pull_back(self, known, d_outputs):
        """Run `pull_back` of the block, its own variables at their values."""
        with self._scope([value for _, value, _ in self.own]):
            result = self.block.pull_back(known, d_outputs, self)
        if self.remaining:
            raise ValueError(_MISMATCH.format(layer=self.remaining[-1][0].name))
        return result

    def __call__(self, layer, x):
        entry = _pop(self.remaining, layer)
        x = self.run.read(x)
        leaves = nested.flatten(x)
        results, pull = self.backward.pull(entry, leaves)
        found = entry.call.results

        def pullback(d_y):
            d_y = nested.flatten(d_y)
            d_x = pull([d_y[i] for i in found.places])
            d_x = [_zero(x) if d is None else d for x, d in zip(leaves, d_x)]
            return nested.pack(x, d_x)

        return self.run.write(found.outputs(results)), pullback

    def add(self, variable, cotangent):
        """Take the cotangent of a variable that belongs to no sub-layer."""
        for own, _, key in self.own:
            if own is variable:
                self.backward.add(key, cotangent)

    def derive(self, block, outputs, d_outputs):
        """The pull-back that follows from `couple` and `uncouple` alone.

        `uncouple` evaluates each sub-layer once and so reconstructs the
        inputs. At these inputs `couple` is differentiated; where it calls a
        sub-layer, that value is taken again, with its pullback.
        """
        evaluated = []

        def evaluate(layer, x):
            y, pullback = self(layer, x)
            evaluated.append((layer, (self.run.read(y), pullback)))
            return y

        inputs = block.uncouple(outputs, evaluate)

        def couple(own, streams):
            def again(layer, x):
                y, pullback = _pop(evaluated, layer)
                given = backend.custom_vjp(
                    lambda x: (y, ()), lambda _, d_y: (pullback(d_y),)
                )
                return given(x)

            with self._scope(own):
                return block.couple(streams, again)

        values = [value for _, value, _ in self.own]
        _, pull = backend.vjp(couple, values, self.run.read(inputs))
        d_own, d_inputs = pull(d_outputs)
        for (_, _, key), d in zip(self.own, d_own):
            self.backward.add(key, d)
        return inputs, d_inputs

    def _scope(self, values):
        variables = [variable for variable, _, _ in self.own]
        return Record(zip(variables, values), self.run.scope.through)


def _zero(x):
    return ops.zeros_like(x) if backend.is_float(x) else None


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
