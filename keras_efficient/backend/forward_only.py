"""The primitives on a backend that cannot differentiate (NumPy, OpenVINO)."""

import contextlib

import keras

from keras_efficient.backend import generators


def _refuse(*args, **kwargs):
    raise NotImplementedError(
        "Training needs derivatives, and the Keras backend "
        f"'{keras.config.backend()}' has none. Layers of keras_efficient run "
        "forward and `inverse` on it. To train, set the environment variable "
        "KERAS_BACKEND to 'jax', 'tensorflow' or 'torch' before the first "
        "import of keras."
    )


vjp = _refuse
divided_train_step = _refuse
drop_gradients = _refuse
gradient_hooks = None
leaf_gradients = _refuse
peak_bytes = _refuse
saved_bytes = _refuse
saved_bytes_by_label = _refuse
products_by_label = _refuse
update_bytes = _refuse


def custom_vjp(forward, backward):
    """Make a function that runs `forward`; nobody will ask for `backward`."""

    def fn(*args):
        return forward(*args)[0]

    return fn


def not_differentiable(fn):
    """Nobody will differentiate it."""
    return fn


def segment(fn, *args, after=()):
    """Without a backward pass there is nothing to order."""
    return fn(*args)


gradients_lose_masks = False


def eagerly():
    """All operations run now."""
    return contextlib.nullcontext()


record_random = generators.record
replay_random = generators.replay
gradients_flow_through_assignments = False


def place():
    return contextlib.nullcontext


class Capture:
    """A call that is run now, and never again."""

    natives = ()

    def __init__(self, call, tensors, record):
        self.results = call(tensors, record)
        self.reads = []


def recomputed(tape, tensors):
    """Run forward; nobody will ask for `tape.backward`."""
    return tape.trace(tensors)


def to_host(x):
    """Where this is called, nothing is kept."""
    return x, lambda x: x


def as_tensor(value):
    return value


def stopped(variable, live):
    return live


def stop_gradient(x):
    return x


copied = stop_gradient


def needs_gradient(variable, live):
    return False


def link(leaf, value):
    return value


def is_float(x):
    return "float" in str(x.dtype)


def is_concrete(x):
    return True


def is_traced(x):
    return False


def is_dense(x):
    return True


def alarm(failed, warn, fail, in_program):
    """Without a backward pass there is nothing to look at."""


def leaves(layer):
    """Nothing is trained here."""
    return set()


def label(name):
    return contextlib.nullcontext()


def run_compiled(fn, args, owner, key):
    """Nothing is trained here."""
    return fn(*args)
