import json

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="keras_efficient")
class CallbackState(keras.losses.Loss):
    """Carry what a callback remembers in the files of its model.

    Keras saves no state of callbacks. It does save what hangs on a model and
    has `save_own_variables`, and through its public names that takes a loss;
    this one is never called. The number and the order of the weights of the
    model do not change: files with this state load into plain models and the
    other way round.

    Args:
        state: Function without arguments that returns `(arrays, facts)`, a
            dictionary of arrays and a dictionary that JSON can hold.
        restore: Function that is called with the same two.
    """

    def __init__(self, state, restore):
        super().__init__()
        self._state, self._restore = state, restore

    def save_own_variables(self, store):
        arrays, facts = self._state()
        for name, array in arrays.items():
            store[name] = array
        text = json.dumps(facts).encode()
        store["facts"] = np.frombuffer(text, dtype="uint8")

    def load_own_variables(self, store):
        arrays = {name: np.array(store[name]) for name in store.keys()}
        if "facts" in arrays:
            self._restore(arrays, json.loads(arrays.pop("facts").tobytes()))


class StatefulCallback(keras.callbacks.Callback):
    """Base class: go on after an interruption as if there had been none.

    A subclass says where its state hangs on the model while it trains
    (`STATE`), what that is (`_state`, `_restore`), and how it begins anew
    (`_reset`). It goes before `keras.callbacks.BackupAndRestore` in the list.
    """

    STATE = None

    def set_model(self, model):
        super().set_model(model)
        if model:
            setattr(
                model, self.STATE, CallbackState(self._state, self._restore)
            )

    def on_train_begin(self, logs=None):
        self._reset()

    def on_train_end(self, logs=None):
        setattr(self.model, self.STATE, None)

    def _check(self, name, is_right, expected):
        """Raise an error for an option that is outside its range."""
        if not is_right:
            raise ValueError(
                f"`{name}` must be {expected}. "
                f"Received: {name}={getattr(self, name)}"
            )

    def _reset(self):
        raise NotImplementedError

    def _state(self):
        """Return `(arrays, facts)`; see `CallbackState`."""
        raise NotImplementedError

    def _restore(self, arrays, facts):
        raise NotImplementedError
