"""One layer on several inputs, of which only the inputs are kept."""

from keras_efficient.autodiff.backward import BackwardOfCalls
from keras_efficient.autodiff.tape import Tape


def run_tiles(calls, known=()):
    """Run calls that do not need each other, one after the other.

    The backward pass repeats them one by one, from the last to the first.

    Args:
        calls: List of `Call`s.
        known: List of the variables that will be read, most likely.

    Returns:
        List of what each call returned. Variables have been written, and
        losses added.
    """
    tape = _Tiles(calls, known)
    results = tape.run([call.tensors for call in calls])
    return [
        call.results.outputs(outputs) for call, outputs in zip(calls, results)
    ]


class _Tiles(Tape):
    def __init__(self, calls, known):
        super().__init__(known)
        self.calls = calls

    def forward(self, *tensors):
        outputs = []
        for call, given in zip(self.calls, tensors):
            call.tensors = list(given)
            outputs.append(self.record(call)[: call.results.losses])
        return outputs

    def references_of_steps(self):
        return [entry.references() for entry in self.entries]

    def backward(self, outputs, *values):
        return _BackwardOfTiles(self, *values)


class _BackwardOfTiles(BackwardOfCalls):
    def __init__(self, tape, *values):
        super().__init__(tape, *values)
        given = iter(self.d_outputs)
        for entry in tape.entries:
            for key in entry.result_keys()[: entry.call.results.losses]:
                self.add(key, next(given))
