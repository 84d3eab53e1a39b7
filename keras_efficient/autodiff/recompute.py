"""Layers one after the other, of which only the inputs are kept."""

from keras_efficient.autodiff.backward import BackwardOfCalls
from keras_efficient.autodiff.tape import Tape


def recompute(calls, known=(), store=None):
    """Run layers, and compute their activations again when they are needed.

    Args:
        calls: List of functions. The first returns a `Call`; each further one
            makes one of what the layer before it has returned.
        known: List of the variables that will be read, most likely.
        store: How inputs are kept, one of `storage.STORES`.

    Returns:
        What the last layer returned. Variables have been written, and losses
        added.
    """
    first = calls[0]()
    tape = _Layers(first, calls[1:], known, store)
    outputs = tape.run(first.tensors)
    return tape.last.results.outputs(outputs)


class _Layers(Tape):
    def __init__(self, first, others, known, store):
        super().__init__(known, store)
        self.last = first
        self.others = others

    def forward(self, *tensors):
        call = self.last
        call.tensors = list(tensors)
        results = self.record(call)
        for make in self.others:
            # What goes from layer to layer is kept.
            number = len(self.entries) - 1
            outputs = results[: call.results.losses]
            for place, y in enumerate(outputs):
                slot = self.keep_activation(y)
                self.refer(y, slot, ("result", number, place))
            call = make(call.results.outputs(results))
            results = self.record(call)
        self.last, self.others = call, None
        return results[: call.results.losses]

    def references_of_steps(self):
        return [entry.references() for entry in self.entries]

    def backward(self, outputs, *values):
        return _BackwardOfLayers(self, *values)


class _BackwardOfLayers(BackwardOfCalls):
    def __init__(self, tape, *values):
        super().__init__(tape, *values)
        for key, d in zip(tape.entries[-1].result_keys(), self.d_outputs):
            self.add(key, d)
