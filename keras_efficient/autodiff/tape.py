"""What the forward pass of a run hands to its backward pass.

Each call of a layer is written down with references to the tensors that it
took, read and returned. A tensor is an argument of the run (`"tensor"`), comes
from outside of it (`"source"`: a variable, or what a layer closes over), or is
kept from the forward to the backward pass (`"kept"`: inputs of layers, and the
state that a call has changed). Its cotangent goes to the argument, to the
source, or to the call that returned it (`"result"`).
"""

from keras_efficient import backend
from keras_efficient.autodiff.record import Record
from keras_efficient.backend import nested


class Tape:
    """A run, called once: `outputs = Tape(...).run(arguments)`.

    A subclass defines `forward`, which calls layers through `record`;
    `references_of_steps`, what each step of the backward pass takes; and
    `backward`, which makes a `Backward` of it.

    Args:
        known: List of variables that will be read, most likely. (Any other
            variable is found as well, at a higher cost.)
    """

    def __init__(self, known=()):
        self.scope = _RunScope(known)
        self.entries = []
        # For each step of the backward pass, the numbers of the sources that
        # it takes, and all that it takes.
        self.steps = []
        self.slots = []
        self.used = set()  # the numbers of the arguments that some step takes
        self.kept = []
        self.sources = []
        self._references = {}
        self._losses = []

    def run(self, arguments):
        """Return the outputs, once losses are added and variables written."""
        self.arguments = nested.skeleton(arguments)
        results = backend.recomputed(self, nested.flatten(arguments))
        n, m = self.counts
        updates = results[n + m :] if self.scope.through else self.updates
        for variable, value in zip(self.scope.written.values(), updates):
            variable.assign(value)
        for (_, number, _), loss in zip(self.keys, results[n : n + m]):
            self.entries[number].call.layer.add_loss(loss)
        self.updates = None
        return nested.pack(self.outputs, results[:n])

    def trace(self, tensors):
        """Run forward on tensors from which no gradient goes back.

        This is what `backend.recomputed` calls. Afterwards the tape holds no
        tensors but `kept` and `sources`.

        Returns:
            List of tensors: outputs, losses, and if gradients flow through
            them the new values of variables.
        """
        for i, x in enumerate(tensors):
            self.refer(x, ("tensor", i), ("tensor", i))
        with self.scope:
            outputs = self.forward(*nested.pack(self.arguments, tensors))
        self.outputs = nested.skeleton(outputs)
        outputs = nested.flatten(outputs)
        losses = [loss for loss, _ in self._losses]
        self.counts = len(outputs), len(losses)
        self.updates = [
            self.scope.state_mapping[key] for key in self.scope.written
        ]
        self.keys = [key for _, key in self._losses]
        results = [*outputs, *losses]
        if self.scope.through:
            self.keys += [self._references[id(x)][2] for x in self.updates]
            results += self.updates
        self._seal()
        return results

    def _seal(self):
        """Turn tensors into references, all sources being known."""
        scope = self.scope
        for key, (value, live) in scope.read.items():
            self._refer_variable(key, value, live)
        for entry in self.entries:
            entry.seal(self)
        for references in self.references_of_steps():
            slots = {slot for slot, _ in references if slot[0] != "constant"}
            keys = {key for _, key in references if key is not None}
            sources = {k for kind, k, *_ in slots | keys if kind == "source"}
            self.slots.append(sorted(slots))
            self.steps.append(sorted(sources))
            self.used |= {i for kind, i in slots if kind == "tensor"}
        self._references = self._losses = None
        scope.forget()

    def _refer_variable(self, key, value, live):
        gradient = None
        if backend.needs_gradient(self.scope.variables[key], live):
            gradient = self.add_source(live)
        # What is written may soon be overwritten in place.
        written = key in self.scope.written
        lasting = backend.copied(value) if written else value
        is_source = gradient is not None and lasting is value
        slot = gradient if is_source else self.keep(lasting)
        self.refer(value, slot, gradient)

    def record(self, call):
        """Run a `Call` now, and write it down. Returns its results."""
        captured = backend.Capture(call, call.tensors, Record())
        entry = Entry(call, captured, len(self.entries))
        self.entries.append(entry)
        for x in captured.natives:
            source = self.add_source(x)
            self.refer(x, source, source)
        found, results = call.results, captured.results
        for place in range(found.losses, found.updates):
            key = ("result", entry.number, place)
            self._losses.append((results[place], key))
        for place, variable in enumerate(found.written, found.updates):
            self.scope.add_update((variable, results[place]))
            value = self.scope.state_mapping[id(variable)]
            key = ("result", entry.number, place)
            if not self.scope.through:
                key = ("leaf", id(variable)) if variable.trainable else None
            self.refer(value, None, key)
        captured.results = None
        return results

    # References.

    def refer(self, x, slot, key):
        """Note where to find `x` later, and where its cotangent goes."""
        self._references[id(x)] = [x, slot, key]

    def reference(self, x):
        """Return `(slot, key)` of a tensor; keep it if nobody else does."""
        if id(x) not in self._references:
            is_source = backend.is_traced(x)
            slot = self.add_source(x) if is_source else ("constant", x)
            self.refer(x, slot, slot if is_source else None)
        found = self._references[id(x)]
        if found[1] is None:
            found[1] = self.keep(x)
        slot, key = found[1:]
        if key is not None and key[0] == "leaf":
            key = self.reference(self.scope.first[key[1]])[1]
        return slot, key

    def keep(self, x):
        self.kept.append(x)
        return ("kept", len(self.kept) - 1)

    def add_source(self, live):
        self.sources.append(live)
        return ("source", len(self.sources) - 1)


class Entry:
    """A call that was recorded.

    Attributes:
        arguments: `(slot, key)` of each of its tensors; those that the
            backward pass reconstructs are not looked up.
        reads: The same for what it read.
    """

    def __init__(self, call, captured, number):
        self.call = call
        self.captured = captured
        self.number = number
        self.reconstructed = 0  # so many arguments, from the first on
        self.arguments = None
        self.reads = None

    def seal(self, tape):
        self.arguments = [
            tape.reference(x) for x in self.call.tensors[self.reconstructed :]
        ]
        self.reads = [tape.reference(x) for x in self.captured.reads]
        self.call.tensors = self.captured.reads = None

    def references(self):
        return [*self.arguments, *self.reads]

    def result_keys(self):
        n = self.call.results.count
        return [("result", self.number, place) for place in range(n)]


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
        values, *more = backend.segment(
            lambda *taken: taken,
            [of[kind][at] for kind, at in slots],
            *more,
            after=(after, self.done),
        )
        self.values = dict(zip(slots, values))
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
        if key is not None:
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

        def pullback(d_outputs):
            d_tensors, d_reads = pull([*d_outputs, *others])
            for (_, key), d in zip(entry.arguments, d_tensors[n:]):
                self.add(key, d)
            for (_, key), d in zip(entry.reads, d_reads):
                self.add(key, d)
            return d_tensors[:n]

        return results, pullback


def add(a, b):
    """Add two cotangents; `None` is zero."""
    return b if a is None else a if b is None else a + b


class _RunScope(Record):
    """What a whole run reads and writes.

    Attributes:
        read: Dictionary from the id of each variable that was read to the
            value that the run sees, from which no gradient goes back, and to
            the value in the world outside, where it goes.
    """

    def __init__(self, known):
        super().__init__()
        self.read = {}
        # In the dtype that they are stored in: no layer is around that casts.
        self._known = {id(v): backend.as_tensor(v.value) for v in known}

    def fetch(self, variable):
        key = id(variable)
        live = self._known.get(key)
        if live is None:
            live = self.around(variable)
        value = backend.stopped(variable, live)
        self.read[key] = value, live
        return value

    def forget(self):
        self._known = self.read = self.first = self.state_mapping = None
