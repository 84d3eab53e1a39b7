"""What the forward pass of a run hands to its backward pass.

Each call of a layer is written down with references to the tensors that it
took, read and returned. A tensor is an argument of the run (`"tensor"`), comes
from outside of it (`"source"`: a variable, or what a layer closes over), or is
kept from the forward to the backward pass (`"kept"`: inputs of layers, and the
state that a call has changed). Its cotangent goes to the argument, to the
source, or to the call that returned it (`"result"`).
"""

from keras_efficient import backend
from keras_efficient.autodiff import repeat_check
from keras_efficient.autodiff import storage
from keras_efficient.autodiff.record import Record
from keras_efficient.autodiff.record import stored
from keras_efficient.backend import nested


class Tape:
    """A run, called once: `outputs = Tape(...).run(arguments)`.

    A subclass defines `forward`, which calls layers through `record`;
    `references_of_steps`, what each step of the backward pass takes; and
    `backward`, which makes a `Backward` of it.

    Args:
        known: List of variables that will be read, most likely. (Any other
            variable is found as well, at a higher cost.)
        store: How activations are kept, one of `storage.STORES`. Defaults to
            `None`, as they are.
    """

    keeps_outputs = False  # whether the backward pass begins with them
    gates = True  # whether its steps wait for cotangents

    def __init__(self, known=(), store=None):
        self.scope = _RunScope(self, known)
        self.entries = []
        # For each step of the backward pass, the numbers of the sources that
        # it takes, and all that it takes.
        self.steps = []
        self.slots = []
        self.used = set()  # the numbers of the arguments that some step takes
        self.kept = []
        self.store = store
        self.back = {}  # for each slot that is put away: how to get it back
        self.sources = []
        self.variables_of_sources = []  # `None` for what is no variable
        self._references = {}
        self._extras = []  # what leaves besides the outputs, and its keys
        self.takers = []  # the functions that take it

    def run(self, arguments):
        """Return the outputs, once all else that leaves has been taken."""
        self.arguments = nested.skeleton(arguments)
        results = backend.recomputed(self, nested.flatten(arguments))
        n, m = self.counts
        updates = results[n + m :] if self.scope.through else self.updates
        for variable, value in zip(self.scope.written.values(), updates):
            variable.assign(value)
        for take, x in zip(self.takers, results[n : n + m]):
            take(x)
        self.updates = None
        return nested.pack(self.outputs, results[:n])

    def trace(self, tensors):
        """Run forward on tensors from which no gradient goes back.

        This is what `backend.recomputed` calls. Afterwards the tape holds no
        tensors but `kept` and `sources`.

        Returns:
            List of tensors: outputs, losses and what is left in attributes,
            and if gradients flow through them the new values of variables.
        """
        for i, x in enumerate(tensors):
            self.refer(x, ("tensor", i), ("tensor", i))
        with self.scope:
            outputs = self.forward(*nested.pack(self.arguments, tensors))
        self.outputs = nested.skeleton(outputs)
        outputs = nested.flatten(outputs)
        self.specs = [(y.shape, y.dtype) for y in outputs]
        extras = [x for x, _ in self._extras]
        self.counts = len(outputs), len(extras)
        self.updates = [
            self.scope.state_mapping[key] for key in self.scope.written
        ]
        self.keys = [key for _, key in self._extras]
        results = [*outputs, *extras]
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
        self._references = self._extras = None
        scope.forget()

    def _refer_variable(self, key, value, live):
        gradient = None
        if backend.needs_gradient(self.scope.variables[key], live):
            gradient = self.add_source(live, self.scope.variables[key])
        # What is written may soon be overwritten in place.
        written = key in self.scope.written
        lasting = backend.copied(value) if written else value
        is_source = gradient is not None and lasting is value
        slot = gradient if is_source else self.keep(lasting)
        self.refer(value, slot, gradient)

    def record(self, call, reconstructed=0):
        """Run a `Call` now, and write it down.

        Args:
            call: The `Call`.
            reconstructed: Integer, how many of its tensors, from the first
                on, the backward pass reconstructs.

        Returns:
            Its results.
        """
        captured = backend.Capture(call, call.tensors, Record())
        call.attributes.let_go()
        entry = Entry(call, captured, len(self.entries), reconstructed)
        if not reconstructed:
            entry.kept = repeat_check.keep(call.layer, captured.results)
        self.entries.append(entry)
        for x in captured.natives:
            source = self.add_source(x)
            self.refer(x, source, source)
        found, results = call.results, captured.results
        for place in range(found.losses, found.updates):
            key = ("result", entry.number, place)
            self._extras.append((results[place], key))
        self.takers += [call.layer.add_loss] * (found.left - found.losses)
        self.takers += call.attributes.takers()
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

    def keep_activation(self, x):
        """Keep a tensor as `store` says."""
        return self.keep(self.put_away(x, ("kept", len(self.kept))))

    def put_away(self, x, slot):
        if self.store is not None:
            x, self.back[slot] = storage.put_away(x, self.store)
        return x

    def bring_back(self, x, slot):
        return self.back[slot](x) if slot in self.back else x

    def hand_over(self, results, given):
        """Return what the backward pass takes of outputs and arguments."""
        n = self.counts[0] if self.keeps_outputs else 0
        outputs = [
            self.put_away(y, ("output", i)) for i, y in enumerate(results[:n])
        ]
        given = [
            self.put_away(x, ("tensor", i)) if i in self.used else None
            for i, x in enumerate(given)
        ]
        return outputs, given

    def add_source(self, live, variable=None):
        self.sources.append(live)
        self.variables_of_sources.append(variable)
        return ("source", len(self.sources) - 1)


class Entry:
    """A call that was recorded.

    Attributes:
        kept: What its results are compared with when it is repeated.
        arguments: `(slot, key)` of each of its tensors; those that the
            backward pass reconstructs are not looked up.
        reads: The same for what it read.
    """

    def __init__(self, call, captured, number, reconstructed):
        self.call = call
        # What is reconstructed is not to wait for the end of the run.
        call.tensors = call.tensors[reconstructed:]
        self.captured = captured
        self.number = number
        self.kept = None
        self.arguments = None
        self.reads = None

    def seal(self, tape):
        self.arguments = [tape.reference(x) for x in self.call.tensors]
        self.reads = [tape.reference(x) for x in self.captured.reads]
        self.call.tensors = self.captured.reads = None

    def references(self):
        return [*self.arguments, *self.reads]

    def result_keys(self):
        n = self.call.results.count
        return [("result", self.number, place) for place in range(n)]


class _RunScope(Record):
    """What a whole run reads and writes.

    Attributes:
        read: Dictionary from the id of each variable that was read to the
            value that the run sees, from which no gradient goes back, and to
            the value in the world outside, where it goes.
        own: Dictionary from the id of each variable that was read outside of
            any call to the variable and the value.
    """

    def __init__(self, tape, known):
        super().__init__()
        self.tape = tape
        self.read = {}
        self.own = {}
        self._known = dict(zip(map(id, known), stored(known)))

    def get_current_value(self, variable):
        value = self.lend(variable)
        if value is not None:
            self.own.setdefault(id(variable), (variable, value))
        return value

    def fetch(self, variable):
        key = id(variable)
        live = self._known.get(key)
        if live is None:
            live = self.around(variable)
        value = backend.stopped(variable, live)
        self.read[key] = value, live
        return value

    def add_update(self, update):
        super().add_update(update)
        value = self.state_mapping[id(update[0])]
        self.tape.refer(value, None, None)

    def forget(self):
        self._known = self.read = self.first = self.state_mapping = None
        self.own = self.tape = None
