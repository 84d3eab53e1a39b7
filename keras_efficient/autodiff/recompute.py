"""Layers one after the other, of which only the inputs are kept."""

from keras_efficient.autodiff.backward import Backward
from keras_efficient.autodiff.tape import Tape


def recompute(calls, known=()):
    """Run layers, and compute their activations again when they are needed.

    Args:
        calls: List of functions. The first returns a `Call`; each further one
            makes one of what the layer before it has returned.
        known: List of the variables that will be read, most likely.

    Returns:
        What the last layer returned. Variables have been written, and losses
        added.
    """
    first = calls[0]()
    tape = _Layers(first, calls[1:], known)
    outputs = tape.run(first.tensors)
    return tape.last.results.outputs(outputs)


class _Layers(Tape):
    def __init__(self, first, others, known):
        super().__init__(known)
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
                self.refer(y, None, ("result", number, place))
            call = make(call.results.outputs(results))
            results = self.record(call)
        self.last, self.others = call, None
        return results[: call.results.losses]

    def references_of_steps(self):
        return [entry.references() for entry in self.entries]

    def backward(self, outputs, *values):
        return _BackwardOfLayers(self, *values)


class _BackwardOfLayers(Backward):
    def __init__(self, tape, *values):
        super().__init__(tape, *values)
        for key, d in zip(tape.entries[-1].result_keys(), self.d_outputs):
            self.add(key, d)

    def step(self, step, sources):
        entry = self.tape.entries[step]
        n = len(entry.call.results.places)
        d_outputs = [self.d.pop(key, None) for key in entry.result_keys()[:n]]
        others = [self.d.get(key) for key in entry.result_keys()[n:]]
        waiting = [d for d in (*d_outputs, *others) if d is not None]
        if waiting:
            self.begin(step, sources, after=waiting)
            _, pullback = self.pull(entry)
            pullback(d_outputs)
        return self.end(step)
