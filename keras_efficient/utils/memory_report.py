import contextlib
import sys

import keras
import numpy as np
from keras import ops
from rich.console import Console

from keras_efficient import backend
from keras_efficient.conversion.arguments import as_batch
from keras_efficient.conversion.arguments import as_bytes
from keras_efficient.conversion.arguments import batch_size
from keras_efficient.conversion.least_work import peak_of
from keras_efficient.conversion.step_bytes import as_function
from keras_efficient.conversion.step_bytes import bytes_of
from keras_efficient.utils.layer_memory import activations_of
from keras_efficient.utils.layer_memory import plain_runs
from keras_efficient.utils.layer_memory import rows_of
from keras_efficient.utils.memory_plan import make_plan
from keras_efficient.utils.memory_usage import GIB
from keras_efficient.utils.memory_usage import LayerMemory
from keras_efficient.utils.memory_usage import MemoryReport
from keras_efficient.utils.progress import progress
from keras_efficient.utils.step_measurement import OPTIMIZERS
from keras_efficient.utils.step_measurement import check_built
from keras_efficient.utils.step_measurement import measure_step
from keras_efficient.utils.step_memory import Line
from keras_efficient.utils.step_memory import line_through
from keras_efficient.utils.step_memory import measure_line
from keras_efficient.utils.step_memory import usage


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
      activations, results that nobody needs again, temporaries of the update,
      on PyTorch also the gradients of the step before while the model runs
      forward.

    Beside the model as it is stand the levers:

    - 8-bit Adam, MicroAdam and SinkGD;
    - reversible layers, for layers of this library that were built with
      `reversible=False` (measured);
    - `to_reversible`, for a backbone of KerasHub that it takes (measured on
      it; it computes a nearby function, see there);
    - `keras_efficient.recompute`, with the segments that it would choose
      (computed from what each keeps); and the same with MicroAdam.

    With a budget the report ends in the plan that `memory_plan` makes.

    The peak of the process is larger where its allocator holds back what was
    freed. On Linux, the environment variable `MALLOC_MMAP_THRESHOLD_=131072`
    makes it give all of it back.

    Args:
        model: A built Keras model with one or several inputs and outputs.
        inputs: A batch: array, tensor or a nested structure of them; a
            dataset, whose first batch is taken; or the number of examples, for
            a model that knows the shape of its inputs.
        optimizer: `keras.optimizers.Optimizer`, which is not changed, or its
            name. Defaults to `None`: that of the compiled model, or none.
        budget: Number of GiB, or a string such as `"8GiB"`. With it the report
            has the largest batch that fits. Defaults to `None`.
        verbose: `0` or `1`. Whether to print the tables. Defaults to `1`.

    Returns:
        `MemoryReport`: `layers`, a list of `LayerMemory`; `usage`, a dict from
        "as it is" and from each lever to a `MemoryUsage`; all in bytes.
        `report.plan` is the `MemoryPlan`, or `None` without a budget;
        `report.as_dict()` is made for JSON, `report.plot("memory.png")` draws
        stacked bars. Under `keras.distribution` on JAX, bytes of variables are
        those on one device.

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
    check_built(model)
    budget = None if budget is None else as_bytes(budget)
    with progress(verbose) as advance:
        inputs = as_batch(model, inputs)
        report = _measured(model, inputs, optimizer, budget, advance)
    if verbose:
        Console().print(report)
    return report


def _measured(model, inputs, optimizer, budget, advance):
    advance("Activations of the layers")
    rows = rows_of(model)
    activations = activations_of(model, rows, inputs)
    kept = sum(activations.values())
    step = measure_step(model, inputs, optimizer, advance)
    advance("The peak of another batch")
    is_needed = budget is not None
    line = measure_line(model, inputs, is_needed, step)
    fixed = step.fixed
    ways = {"as it is": (fixed["as it is"], kept, line)}
    advance("Reversible layers")
    with _switched_to_reversible(model) as is_switched:
        if is_switched:
            saved = sum(activations_of(model, rows, inputs).values())
            shorter = measure_line(model, inputs, is_needed)
            ways["reversible"] = fixed["as it is"], saved, shorter
    difference = _made_reversible(model, inputs, is_needed)
    if difference is not None:
        saved, fixed_part, an_example = difference
        shorter = Line(line.fixed + fixed_part, line.an_example + an_example)
        ways["to_reversible"] = fixed["as it is"], kept + int(saved), shorter
    if step.costs:
        size = batch_size(inputs)
        saved = kept - sum(cost.kept - cost.inputs for cost in step.costs)
        shorter = line_through(step.recomputed, model, size)
        grows = peak_of(step.costs, [True] * len(step.costs)) / size
        shorter = shorter.with_slope(max(shorter.an_example, grows), size)
        ways["recompute"] = fixed["as it is"], max(saved, 0), shorter
    ways |= {name: (fixed[name], kept, line) for name in OPTIMIZERS}
    if "recompute" in ways:
        both = fixed["MicroAdam"], *ways["recompute"][1:]
        ways["recompute and MicroAdam"] = both
    plan = budget and make_plan(model, batch_size(inputs), step, budget)
    return MemoryReport(
        keras.config.backend(),
        batch_size(inputs),
        budget and budget / GIB,
        _layers(model, rows, activations, step.states),
        {name: usage(*way, inputs, budget) for name, way in ways.items()},
        plan,
    )


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


def _made_reversible(model, inputs, is_needed):
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
                sum(activations_of(x, rows_of(x), inputs).values()),
                *measure_line(x, inputs, is_needed, measure=_peak_of_sum),
            ]
        )
        for x in (backbone, converted)
    )
    return after - before


def _peak_of_sum(model, inputs):
    """Measure the passes of what others go on from: its outputs do not stay."""
    fn, params = as_function(model)

    def total(params, inputs):
        outputs, losses = fn(params, inputs)
        return sum(ops.sum(x) for x in keras.tree.flatten(outputs)), losses

    return backend.peak_bytes(total, params, inputs)


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
