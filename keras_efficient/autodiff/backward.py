"""The backward pass over a tape: each call repeated, and differentiated."""

from keras_efficient import backend
from keras_efficient.autodiff import repeat_check
from keras_efficient.backend import nested


class Backward:
    """One backward pass over a tape: a walk over its steps in reverse.

    Args:
        tape: The `Tape`.
        given: Arguments of the run, those that a step takes.
        kept: What the forward pass kept.
        needed: For each source, whether its gradient is asked for; `None` is
            for all of them.
        d_results: Cotangents of what `Tape.trace` returned; `None` is zero.
    """

    def __init__(self, tape, given, kept, needed, d_results):
        self.tape = tape
        self.given = given
        self.kept = kept
        self.needed = needed
        self.values = {}
        self.d = {}
        self.done = []
        n = tape.counts[0]
        self.d_outputs = d_results[:n]
        for key, d in zip(tape.keys, d_results[n:]):
            self.add(key, d)

    def step(self, step, sources):
        """Go one step back. Returns the cotangents of its sources."""
        raise NotImplementedError

    def walk(self, sources):
        """Go all steps back. Returns the cotangents of all sources."""
        total = [None] * len(sources)
        for step in reversed(range(len(self.tape.steps))):
            numbers = self.tape.steps[step]
            found = self.step(step, [sources[k] for k in numbers])
            for k, d in zip(numbers, found):
                total[k] = add(total[k], d)
        return total

    def arguments(self):
        """Return the cotangents of the arguments of the run."""
        count = len(nested.flatten(self.tape.arguments))
        return [self.d.get(("tensor", i)) for i in range(count)]

    def begin(self, step, sources, *more, after):
        """Get all that a step takes, not before cotangents are there.

        Args:
            step: Integer, its number.
            sources: List of the values of its sources.
            *more: Further structures of tensors that it takes.
            after: Structure of the cotangents to wait for.

        Returns:
            Tuple of `more`.
        """
        source = dict(zip(self.tape.steps[step], sources))
        of = {"tensor": self.given, "kept": self.kept, "source": source}
        slots = self.tape.slots[step]
        values = [of[kind][at] for kind, at in slots]
        if self.tape.gates:
            values, *more = backend.segment(
                lambda *taken: taken, values, *more, after=(after, self.done)
            )
        # Not before: XLA takes a cast and its opposite for nothing.
        self.values = {
            slot: self.tape.bring_back(x, slot)
            for slot, x in zip(slots, values)
        }
        return more

    def end(self, step):
        """Return the cotangents of the sources of a step."""
        found = [self.d.pop(("source", k), None) for k in self.tape.steps[step]]
        self.done = [d for d in found if d is not None]
        self.values = {}
        return found

    def value(self, slot):
        return slot[1] if slot[0] == "constant" else self.values[slot]

    def add(self, key, d):
        """Add to the cotangent of something."""
        if key is not None and d is not None:
            self.d[key] = add(self.d.get(key), d)

    def is_needed(self, key):
        if key is None or key[0] != "source" or self.needed is None:
            return key is not None
        return self.needed[key[1]]

    def pull(self, entry, given=()):
        """Repeat a call.

        Args:
            entry: The `Entry`.
            given: List of its first arguments, reconstructed.

        Returns:
            Its results, and a function from the cotangents of its outputs to
            those of `given`.
        """
        n, m = len(given), len(entry.call.results.places)
        tensors = [*given, *(self.value(slot) for slot, _ in entry.arguments)]
        reads = [self.value(slot) for slot, _ in entry.reads]
        needed = [self.is_needed(key) for _, key in entry.reads]
        others = [self.d.pop(key, None) for key in entry.result_keys()[m:]]
        wanted = [True] * m + [d is not None for d in others]
        results, pull = entry.captured.vjp(tensors, reads, needed, wanted)
        if entry.kept is not None:
            repeat_check.compare(entry.call.layer, entry.kept, results)

        def pullback(d_outputs):
            d_tensors, d_reads = pull([*d_outputs, *others])
            for (_, key), d in zip(entry.arguments, d_tensors[n:]):
                self.add(key, d)
            for (_, key), d in zip(entry.reads, d_reads):
                self.add(key, d)
            return d_tensors[:n]

        return results, pullback


class BackwardOfCalls(Backward):
    """The backward pass of a tape whose steps are its calls."""

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


def add(a, b):
    """Add two cotangents; `None` is zero."""
    return b if a is None else a if b is None else a + b
