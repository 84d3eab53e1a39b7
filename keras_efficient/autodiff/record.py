"""Scopes that see what a call reads and writes, whoever owns the variable."""

import random
import weakref

import keras

from keras_efficient import backend

SEED_STATE = "seed_generator_state"  # of a `keras.random.SeedGenerator`
# Those of other threads, by id.
_shared = weakref.WeakValueDictionary()


class Record(keras.StatelessScope):
    """Hold back what is written within, and note what is read and written.

    A variable without a value of its own has that of the scope around, or its
    current one. (A `keras.StatelessScope` does not ask the scope around.)

    What is read after it was written has the gradient that it has in the
    plain layer. JAX, and every backend under a scope of Keras, passes it on
    through the new value. Elsewhere assigning is done in place: a trainable
    variable is a leaf again, whose gradient is that of the variable, and any
    other is a constant.

    Args:
        values: Pairs of variables and tensors, to be read instead.
        through: Boolean, whether gradients flow through what is assigned.
            Defaults to `None`: as it is where the scope is entered.

    Attributes:
        first: Dictionary from the id of each variable that was seen to its
            value before anything was written.
        variables: Dictionary from these ids to the variables.
        written: Dictionary from the ids of those that were written to them.
    """

    def __init__(self, values=(), through=None):
        super().__init__(collect_losses=True)
        values = list(values)
        self.variables = {id(v): v for v, _ in values}
        self.first = {id(v): x for v, x in values}
        self.state_mapping = dict(self.first)
        self.written = {}
        self.through = through
        self._is_reading = False
        self._not_lent = dict(self.variables)  # in the order of the first call
        self._python = random.getstate() if values else None

    def __enter__(self):
        super().__enter__()
        self._place = backend.place()
        if self.through is None:
            around = self.original_scope
            self.through = backend.gradients_flow_through_assignments or (
                getattr(around, "through", around is not None)
            )
        return self

    def get_current_value(self, variable):
        return self.lend(variable)

    def lend(self, variable):
        """Return what a variable is seen as from a scope inside."""
        if self._is_reading:
            return None  # Keras then takes the variable's own value
        key = id(variable)
        if key not in self.state_mapping and variable.name == SEED_STATE:
            self._share_generator(variable)
        self._not_lent.pop(key, None)
        if key not in self.state_mapping:
            self.variables[key] = variable  # else its id may be used again
            # Not in the graph of a branch that happens to read it first.
            with self._place():
                self.first[key] = self.fetch(variable)
                self.state_mapping[key] = self.delay(self.first[key])
        return self.state_mapping[key]

    def _share_generator(self, variable):
        """See the state of a generator that is another one in this thread.

        Keras has a generator for `seed=None` in each thread, and PyTorch runs
        the backward pass of a GPU in one of its own. It takes the place of the
        generator that the call has read at this point before. Keras drew its
        seed from Python's generator, which is put back.
        """
        if id(variable) not in _shared and self._not_lent:
            _shared[id(variable)] = variable
            random.setstate(self._python)
        for key, known in self._not_lent.items():
            if known.name == SEED_STATE:
                self.state_mapping[id(variable)] = self.state_mapping[key]
                self.variables[id(variable)] = variable
                del self._not_lent[key]
                return

    def fetch(self, variable):
        """Return the value of a variable that is read for the first time."""
        return self.around(variable)

    def delay(self, value):
        """What is seen of a value; `backend.Capture` may let it wait."""
        return value

    def around(self, variable):
        """Return the value that `variable` has outside of this scope."""
        scope = self.original_scope
        if scope is not None:
            ask = getattr(scope, "lend", scope.get_current_value)
            value = ask(variable)
            if value is not None:
                return value
        self._is_reading = True
        try:
            return stored([variable])[0]
        finally:
            self._is_reading = False

    def add_update(self, update):
        variable, value = update
        key = id(variable)
        if not self.through:
            value = backend.stop_gradient(value)
            if variable.trainable:
                self.lend(variable)
                value = backend.link(self.first[key], value)
        self.variables[key] = variable
        self.written[key] = variable
        self.state_mapping[key] = value


def is_recorded():
    """Return whether a `Record` sees what is read and written here."""
    with keras.StatelessScope() as scope:
        return isinstance(scope.original_scope, Record)


class _Uncast(keras.layers.Layer):
    """Reads variables in the dtypes that they are stored in, whatever the
    policy of the layers around."""

    def __init__(self):
        super().__init__(autocast=False, name="uncast")
        self.built = True

    def call(self, read=None):
        return read()


_uncast = _Uncast()


def stored(variables):
    """Read variables as they are stored, whatever layers around compute in."""
    return _uncast(read=lambda: values(variables))


def values(variables):
    """Read `variables` as tensors, so that gradients flow back to them."""
    return [backend.as_tensor(v.value) for v in variables]
