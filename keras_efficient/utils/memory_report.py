import contextlib
import sys

import keras
import numpy as np
from rich.console import Console

from keras_efficient import optimizers
from keras_efficient.conversion.arguments import as_batch
from keras_efficient.conversion.arguments import batch_size
from keras_efficient.conversion.step_bytes import Fixed
from keras_efficient.conversion.step_bytes import bytes_of
from keras_efficient.conversion.step_bytes import state_bytes
from keras_efficient.conversion.step_bytes import update_bytes
from keras_efficient.utils.layer_memory import activations_of
from keras_efficient.utils.layer_memory import plain_runs
from keras_efficient.utils.layer_memory import rows_of
from keras_efficient.utils.memory_usage import LayerMemory
from keras_efficient.utils.memory_usage import MemoryReport
from keras_efficient.utils.step_memory import Line
from keras_efficient.utils.step_memory import measure_line
from keras_efficient.utils.step_memory import usage

OPTIMIZERS = ("Adam8bit", "MicroAdam", "SinkGD")


def memory_report(model, inputs, optimizer=None, budget=None, verbose=1):
    """Tell where the memory of a training step goes, and what would save it.

    Bytes are measured in the way of each backend. On PyTorch tensors are
    followed while the model runs forward and backward; on TensorFlow the
    traced graph is gone through; on JAX the compiler is asked. The model is
    not changed.

    - Parameters, gradients and optimizer state are counted.
    - Activations are what is kept for the backward pass, by layer. On JAX,
      this is what differentiation asks to keep. XLA joins some of it, so that
      the rest ("working memory") may be negative there.
    - Working memory is what there is besides at the peak: gradients of
      activations, results that nobody needs again, temporaries of the update.

    Beside the model as it is stand the levers:

    - 8-bit Adam, MicroAdam and SinkGD;
    - reversible layers, for layers of this library that were built with
      `reversible=False` (measured);
    - `to_reversible`, for a GPT-2 or BERT of KerasHub (measured on the
      backbone; it computes a nearby function, see there);
    - `Recompute` around each layer (estimated: all inputs, and what the
      largest layer keeps).

    The peak of the process is larger where its allocator holds back what was
    freed. On Linux, the environment variable `MALLOC_MMAP_THRESHOLD_=131072`
    makes it give all of it back.

    Args:
        model: A built Keras model with one or several inputs and outputs.
        inputs: A batch: array, tensor or a nested structure of them; or the
            number of examples in one, for a model that knows the shape of its
            inputs.
        optimizer: `keras.optimizers.Optimizer`, which is not changed. Defaults
            to `None`: that of the compiled model, or none.
        budget: Float, GiB. With it the report has the largest batch that fits.
            Defaults to `None`.
        verbose: `0` or `1`. Whether to print the tables. Defaults to `1`.

    Returns:
        `MemoryReport`: `layers`, a list of `LayerMemory`; `usage`, a dict from
        "as it is" and from each lever to a `MemoryUsage`; all in bytes.
        `report.as_dict()` is made for JSON, `report.plot("memory.png")` draws
        stacked bars.

    Raises:
        ValueError: a number is given for a model whose inputs are not known,
            or the model is not built.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    model.compile("adam", "mse")
    report = keras_efficient.utils.memory_report(model, 256, budget=2)
    print(report.usage["MicroAdam"].largest_batch)
    ```
    """
    if not model.built:
        raise ValueError(
            f"The model '{model.name}' is not built, so that its variables "
            "are not known. Call it on a batch once, or start it with a "
            "`keras.Input`."
        )
    inputs = as_batch(model, inputs)
    optimizer = optimizer or getattr(model, "optimizer", None)
    rows = rows_of(model)
    activations, sizes = activations_of(model, rows, inputs)
    kept = sum(activations.values())
    line = measure_line(model, inputs)
    variables = model.trainable_variables
    parameters = bytes_of(model.weights), bytes_of(variables)
    states = {"as it is": [0 for _ in variables]}
    fixed = {"as it is": Fixed(*parameters, 0, 0)}
    others = {name: getattr(optimizers, name)() for name in OPTIMIZERS}
    for name, its in {"as it is": optimizer, **others}.items():
        if its is not None:
            states[name] = state_bytes(its, variables)
            update = update_bytes(its, variables)
            fixed[name] = Fixed(*parameters, sum(states[name]), update)

    ways = {"as it is": (fixed["as it is"], kept, line)}
    with _switched_to_reversible(model) as is_switched:
        if is_switched:
            saved = sum(activations_of(model, rows, inputs)[0].values())
            shorter = measure_line(model, inputs)
            ways["reversible"] = fixed["as it is"], saved, shorter
    difference = _made_reversible(model, inputs)
    if difference is not None:
        saved, fixed_part, an_example = difference
        shorter = Line(line.fixed + fixed_part, line.an_example + an_example)
        ways["to_reversible"] = fixed["as it is"], kept + int(saved), shorter
    saved = sum(sizes.values()) + max(activations.values(), default=0)
    if saved < kept:
        less = (kept - saved) / batch_size(inputs)
        shorter = Line(line.fixed, line.an_example - less)
        ways["Recompute"] = fixed["as it is"], saved, shorter
    ways |= {name: (fixed[name], kept, line) for name in OPTIMIZERS}
    report = MemoryReport(
        keras.config.backend(),
        batch_size(inputs),
        budget,
        _layers(model, rows, activations, states["as it is"]),
        {name: usage(*way, inputs, budget) for name, way in ways.items()},
    )
    if verbose:
        Console().print(report)
    return report


@contextlib.contextmanager
def _switched_to_reversible(model):
    """Switch what was built with `reversible=False`; tell if there is any."""
    plain = plain_runs(model)
    for layer in plain:
        layer.reversible = True
    try:
        yield bool(plain)
    finally:
        for layer in plain:
            layer.reversible = False


def _made_reversible(model, inputs):
    """Return what `to_reversible` adds to activations, and to the `Line`.

    That of the backbone alone; `None` without one of KerasHub that it takes.
    """
    if "keras_hub" not in sys.modules:
        return None
    from keras_efficient.models import hub

    backbone = getattr(model, "backbone", model)
    try:
        converted = hub.to_reversible(backbone)
    except TypeError:
        return None
    before, after = (
        np.array(
            [
                sum(activations_of(x, rows_of(x), inputs)[0].values()),
                *measure_line(x, inputs),
            ]
        )
        for x in (backbone, converted)
    )
    return after - before


def _layers(model, rows, activations, states):
    """Return a `LayerMemory` for each row, and one for what is in none."""
    states = dict(zip(map(id, model.trainable_variables), states))
    seen, layers = set(), []
    numbered = [(number, *row) for number, row in enumerate(rows)]
    for number, name, layer in (*numbered, (None, "(others)", model)):
        own = [v for v in layer.weights if id(v) not in seen]
        seen.update(map(id, own))
        trained = [v for v in own if id(v) in states]
        layers.append(
            LayerMemory(
                name,
                bytes_of(own),
                bytes_of(trained),
                sum(states[id(v)] for v in trained),
                activations.get(number, 0),
            )
        )
    return layers
