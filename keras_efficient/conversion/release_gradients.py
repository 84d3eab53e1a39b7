import contextlib

from keras_efficient import backend
from keras_efficient.backend.replacement import Replacement
from keras_efficient.backend.replacement import find
from keras_efficient.conversion.arguments import check_model
from keras_efficient.conversion.micro_batches import MicroBatches

# Their step of a variable knows nothing of other variables. (That of Nadam
# does: it moves a product on in each call.)
_OPTIMIZERS = (
    *("SGD", "RMSprop", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax"),
    *("Lion", "Adafactor"),
)


def release_gradients(model, release=True):
    """Make `fit` update each variable as soon as its gradient is there.

    A step of PyTorch computes all gradients, 4 bytes a parameter, and then
    updates. Here a variable is updated within the backward pass, once its
    gradient is complete, and the gradient is gone: those of a layer or a
    block are there at a time, in a reversible run or with
    `keras_efficient.recompute` those of one block. Small gradients wait for
    each other, at most as many entries as the largest variable has, or 4
    million. Losses, variables and the optimizer's state are those of a plain
    step.

    On JAX and TensorFlow nothing is changed: XLA puts each update of a
    compiled step right behind its gradient as it is (`guides/benchmarks.md`
    has the bytes).

    The model stays the object that it is. It is a property of the object, not
    of what is saved. Call it before or after `compile` or `fit`, and together
    with `keras_efficient.recompute` and `keras_efficient.chunk_loss`.

    Args:
        model: A `keras.Model`.
        release: Boolean. `False` undoes what was done before. Defaults to
            `True`.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a `keras.Model`.
        ValueError: by the first step, where an update needs more than the
            gradient of its variable: clipping by the global norm, gradient
            accumulation, `keras_efficient.micro_batches`, a
            `LossScaleOptimizer`, an average of weights (`use_ema`), an
            optimizer that is not known to step variable by variable; or the
            model is compiled with `jit_compile=True`.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)])
    keras_efficient.release_gradients(model)
    model.compile("adam", "mse")
    ```

    Reference:
        - [Lv et al., 2023](https://arxiv.org/abs/2306.09782)
    """
    check_model(model)
    before = find(model, "train_step", _Release)
    if before:
        before.remove()
    if release and backend.gradient_hooks is not None:
        release = _Release(model)
        Replacement(model, "train_step", release.train_step)
    model.train_function = None  # it was compiled for another model
    return model


def is_released(model):
    """Whether each gradient of a model is gone once it is used."""
    return find(model, "train_step", _Release) is not None


class _Release:
    def __init__(self, model):
        self.model = model

    def train_step(self, train_step, *args):
        model, optimizer = self.model, self.model.optimizer
        reason = _why_not(model, optimizer)
        if reason:
            raise ValueError(
                f"Gradients of model '{model.name}' cannot be released one by "
                f"one: {reason}. Or call `release_gradients(model, False)`."
            )
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        step = optimizer.iterations.numpy()

        def update(variables, gradients):
            optimizer.iterations.assign(step)  # each call moves it on
            type(optimizer).apply(optimizer, gradients, variables)

        hooks = backend.gradient_hooks(model.trainable_variables, update)
        with hooks, _updated_already(optimizer):
            logs = train_step(*args)
        optimizer.iterations.assign(step + 1)
        return logs


def _why_not(model, optimizer):
    kind = type(optimizer)
    package = kind.__module__.partition(".")[0]
    is_known = package == "keras_efficient" or (
        package == "keras" and kind.__name__ in _OPTIMIZERS
    )
    if not is_known:
        return (
            f"a step of {kind} may need more than the gradient of one variable"
        )
    if _needs_all(optimizer):
        return f"a step of {kind.__name__} needs the gradients of all variables"
    if optimizer.global_clipnorm is not None:
        return "`global_clipnorm` needs the norm of all gradients"
    if optimizer.gradient_accumulation_steps:
        return "`gradient_accumulation_steps` keeps all gradients"
    if optimizer.use_ema:
        return "`use_ema` averages all variables after each update"
    if find(model, "train_step", MicroBatches):
        return "`micro_batches` sums the gradients of all parts"
    if model.jit_compile:
        return "`jit_compile=True` compiles the backward pass as a whole"
    return None


def _needs_all(optimizer):
    """Whether it, or one inside, steps on all variables together."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return getattr(optimizer, "NEEDS_ALL_GRADIENTS", False) or (
        inner is not None and _needs_all(inner)
    )


@contextlib.contextmanager
def _updated_already(optimizer):
    """Within, the update at the end of a step does nothing."""
    vars(optimizer)["apply"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del vars(optimizer)["apply"]
