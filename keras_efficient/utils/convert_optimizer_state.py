import keras
from keras import ops

from keras_efficient.ops.quantize_8bit import dequantize_8bit
from keras_efficient.ops.quantize_8bit import quantize_8bit
from keras_efficient.optimizers import Adam8bit
from keras_efficient.optimizers import Lion8bit
from keras_efficient.optimizers import SGD8bit

# Classes with the same moments, of which others derive; and the moments.
ALGORITHMS = {
    (keras.optimizers.Adam, Adam8bit): ("momentum", "velocity"),
    (keras.optimizers.Lion, Lion8bit): ("momentum",),
    (keras.optimizers.SGD, SGD8bit): ("momentum",),
}


def convert_optimizer_state(source, target, variables):
    """Go on training with another optimizer of the same algorithm.

    Between Adam or AdamW of Keras and `keras_efficient.optimizers.Adam8bit` or
    `AdamW8bit`, between Lion and `Lion8bit`, and between SGD with momentum and
    `SGD8bit`, in both directions: the moments, the number of iterations and
    the learning rate are carried over, and the exponential average of the
    weights where both keep one. Moments are rounded to one byte on the way to
    8 bits; the way back is exact. Other settings, such as `beta_1` or
    `weight_decay`, are those that the target was made with; so is a learning
    rate that is a schedule. Gradients that are accumulated are not carried
    over: convert between two updates.

    Args:
        source: Built optimizer, that of a model from
            `keras.models.load_model` for instance.
        target: Optimizer that takes over. It is built if it is not.
        variables: List of the variables that both train, in the order in
            which `source` was built: `model.trainable_variables`.

    Returns:
        `target`.

    Raises:
        ValueError: the algorithms differ, one of them has no state to carry
            over, the source is not built, or its state is not that of
            `variables`. The target then is as it was, or built.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    model.compile(optimizer="adam", loss="mse")
    x, y = keras.random.normal((8, 64)), keras.random.normal((8, 512))
    model.fit(x, y, verbose=0)

    optimizer = keras_efficient.utils.convert_optimizer_state(
        model.optimizer,
        keras_efficient.optimizers.Adam8bit(),
        model.trainable_variables,
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y, verbose=0)
    ```
    """
    old, new = map(_unwrapped, (source, target))
    names = _check(old, new)
    if not new.built:
        target.build(variables)
    if old.use_ema and new.use_ema:
        names = (*names, "average")
    pairs = []
    for name in names:
        slots = _slots(old, name), _slots(new, name)
        _check_slots(name, *slots, variables)
        values = [_read(slot) for slot in slots[0]]
        if name == "momentum":
            values = [x * _momentum_factor(old, new) for x in values]
        pairs += zip(slots[1], values)
    for slot, value in pairs:
        _write(slot, value)
    # The first variable counts gradients, of which some may make one update.
    updates = int(ops.convert_to_numpy(old.iterations))
    new.variables[0].assign(updates * (new.gradient_accumulation_steps or 1))
    _copy_learning_rate(old, new)
    return target


def _unwrapped(optimizer):
    """Return what a LossScaleOptimizer or another wrapper holds."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _check(source, target):
    """Return the names of the moments that both keep."""
    for classes, names in ALGORITHMS.items():
        if isinstance(source, classes) and isinstance(target, classes):
            break
    else:
        known = [cls.__name__ for classes in ALGORITHMS for cls in classes]
        raise ValueError(
            "`source` and `target` must be optimizers of the same algorithm, "
            f"of those that derive from {known}. Received: "
            f"{type(source).__name__} and {type(target).__name__}"
        )
    for name, optimizer in (("source", source), ("target", target)):
        if getattr(optimizer, "amsgrad", False) or not getattr(
            optimizer, "momentum", True
        ):
            raise ValueError(
                f"`{name}` must keep the same state as `SGD` with momentum, or "
                f"as `Adam` without `amsgrad`. Received: {name}="
                f"{optimizer.get_config()}"
            )
    if not source.built:
        raise ValueError(
            "`source` has no state: it is not built. Load it with the model "
            "that it trained, or call `source.build(variables)`."
        )
    return names


def _slots(optimizer, name):
    """Return lists of the variables of a moment: itself, or codes and scale."""
    slots, scales = [], []
    for variable in optimizer.variables:
        if variable.name.endswith((f"_{name}", f"_{name}_codes")):
            slots.append([variable])
        elif variable.name.endswith(f"_{name}_scale"):
            scales.append(variable)
    for slot in slots:
        if slot[0].name.endswith("_codes"):
            slot.append(scales.pop(0))
    return slots


def _check_slots(name, *slots_and_variables):
    shapes = [
        [tuple(x[0].shape) for x in slots] for slots in slots_and_variables[:2]
    ]
    shapes.append([tuple(x.shape) for x in slots_and_variables[2]])
    if not shapes[0] == shapes[1] == shapes[2]:
        raise ValueError(
            f"Each of `variables` must have a {name} of its shape in both "
            f"optimizers. Received: {name} of shapes {shapes[0]} in `source`, "
            f"{shapes[1]} in `target`; variables of shapes {shapes[2]}"
        )


def _read(slot):
    value = dequantize_8bit(*slot) if len(slot) == 2 else slot[0]
    return ops.cast(value, "float32")


def _write(slot, value):
    values = [value]
    if len(slot) == 2:
        signed = slot[0].dtype == "int8"
        values = quantize_8bit(value, signed)
    for variable, part in zip(slot, values, strict=True):
        variable.assign(part)


def _momentum_factor(source, target):
    """Keras' SGD has a momentum of steps, SGD8bit one of gradients."""
    kinds = [isinstance(x, SGD8bit) for x in (source, target)]
    if not isinstance(source, (keras.optimizers.SGD, SGD8bit)) or (
        kinds[0] == kinds[1]
    ):
        return 1.0
    rate = float(ops.convert_to_numpy(source.learning_rate))
    if not rate:
        raise ValueError(
            "The momentum of SGD is scaled by the learning rate, which must "
            "not be 0. Received: source.learning_rate=0"
        )
    return -1 / rate if kinds[1] else -rate


def _copy_learning_rate(source, target):
    config = source.get_config()["learning_rate"]
    if isinstance(config, dict):
        config = keras.optimizers.schedules.deserialize(config)
    try:
        target.learning_rate = config
    except TypeError:  # a schedule of its own
        pass
