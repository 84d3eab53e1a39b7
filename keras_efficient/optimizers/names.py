"""Names of optimizers: of each one, and those that Keras finds them by."""

import re

import keras

from keras_efficient.kernels.ffi.tensors import is_within_jit_compile


def automatic_name(cls):
    """Return the name of one more optimizer of a class, numbered as in Keras.

    `None`, with which Keras finds one itself, for a class that is not ours.
    """
    package, _, name = cls.__module__.rpartition(".")
    if package != __package__:
        return None
    number = keras.backend.get_uid(name) - 1  # first 1
    return f"{name}_{number}" if number else name


def path_of(variable):
    """Return the path of a variable of Keras, or the name of another."""
    return getattr(variable, "path", None) or variable.name


def setting_of(settings, variable, default):
    """Return what a dictionary from paths to settings has for a variable.

    A key is a path, or a regular expression (`re.search`). Paths of a model
    that is loaded may have lost what they begin with, and are then found by
    their end.

    Args:
        settings: Dictionary, or one setting for all.
        variable: A variable.
        default: What variables without a key have.
    """
    if not isinstance(settings, dict):
        return settings
    path = path_of(variable)
    if path in settings:
        return settings[path]
    for key, setting in settings.items():
        if re.search(key, path) or key.endswith(f"/{path}"):
            return setting
    return default


def check_real(optimizer, variables):
    """Raise a `TypeError` if one of the variables is complex."""
    for variable in variables:
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if dtype.startswith("complex"):
            raise TypeError(
                f"`{type(optimizer).__name__}` trains real variables. "
                f"Received: '{path_of(variable)}' of dtype {dtype}. Train its "
                "real and imaginary parts as two variables."
            )


class OptimizerName(str):
    """A name that `keras.optimizers.get` takes, and the class behind it.

    Keras looks names up among its custom objects. It puts what it finds there
    also in the place of each string of that name in a file, such as the
    optimizer that `compile` was called with: hence a string, not the class.
    """

    def __new__(cls, name, optimizer):
        self = super().__new__(cls, name)
        self.from_config = optimizer.from_config
        return self


def register_names(values):
    """Let Keras find the optimizers among values by their names, in all cases.

    As `Adam` and `adam` of Keras: `MicroAdam`, `microadam`, and `micro_adam`.
    """
    custom_objects = keras.saving.get_custom_objects()
    for cls in values:
        if isinstance(cls, type) and issubclass(
            cls, keras.optimizers.Optimizer
        ):
            name = cls.__name__
            snake_case = cls.__module__.rpartition(".")[2]
            for text in {name, name.lower(), snake_case}:
                custom_objects[text] = OptimizerName(text, cls)


def check_replicas(optimizer):
    """Raise an error where TensorFlow is about to raise one that says less."""
    strategy = getattr(optimizer, "_distribution_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync < 2:
        return
    if is_within_jit_compile():
        raise ValueError(
            "TensorFlow compiles no program for variables of several devices. "
            f"Received: jit_compile=True and a {type(strategy).__name__} of "
            f"{strategy.num_replicas_in_sync} replicas. Compile the model with "
            "`jit_compile=False`, which is what Keras chooses under a strategy."
        )
