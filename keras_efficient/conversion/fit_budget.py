"""Recompute as little as makes a training step fit into a budget."""

from keras_efficient import backend
from keras_efficient.conversion.arguments import in_words
from keras_efficient.conversion.choose_segments import choose_segments
from keras_efficient.conversion.install import install
from keras_efficient.conversion.install import reinstall
from keras_efficient.conversion.least_work import Cost
from keras_efficient.conversion.least_work import least_peak
from keras_efficient.conversion.least_work import least_work
from keras_efficient.conversion.least_work import peak_of
from keras_efficient.conversion.segments import as_it_is
from keras_efficient.conversion.segments import recomputed
from keras_efficient.conversion.step_bytes import as_function
from keras_efficient.conversion.step_bytes import bytes_of
from keras_efficient.conversion.step_bytes import fixed_bytes
from keras_efficient.conversion.step_bytes import peak_of_passes
from keras_efficient.conversion.step_bytes import peak_of_step

# A byte that is written and read again takes the time of so many
# multiplications.
BYTE = 3
ROUNDS = 6


def fit_budget(model, segments, inputs, budget, optimizer=None):
    """Let segments be recomputed, as few as possible.

    What segments keep and how many multiplications they take is measured
    once, and `least_work` chooses. Then the peak of a step with this choice is
    measured. What it differs by from what was expected corrects the limit, and
    the choice is made anew, until one fits and one that recomputes less does
    not; at most six times.

    Args:
        model: A built model.
        segments: List of lists of segments of it; those of a list belong
            together.
        inputs: Nested structure of tensors, a batch.
        budget: Bytes.
        optimizer: Keras optimizer. Defaults to `None`, without state.

    Returns:
        List of the segments that are recomputed now.

    Raises:
        ValueError: Nothing fits.
    """
    fixed, _ = fixed_bytes(model, optimizer)
    alone = fixed.parameters + fixed.gradients + fixed.optimizer_state
    if budget < alone:
        raise ValueError(_too_small(model, budget, alone, fixed))
    _let(segments, as_it_is)
    peak = peak_of_step(model, inputs, fixed)
    if peak <= budget:
        return []
    segments, costs = _costs(model, segments, inputs)
    best, tried = None, {}
    # The limit is for what segments keep; there is other memory at the peak.
    low, high = 0, sum(cost.kept for cost in costs)
    limit = budget - (peak - high)
    while len(tried) < ROUNDS:
        chosen = least_work(costs, max(limit, least_peak(costs)))
        if tuple(chosen) in tried:
            break
        _let(segments, as_it_is)
        _let([x for x, again in zip(segments, chosen) if again], recomputed)
        peak = tried[tuple(chosen)] = peak_of_step(model, inputs, fixed)
        if peak <= budget:
            best, low = chosen, limit
        else:
            high = limit
        limit = budget - (peak - peak_of(costs, chosen))
        if not low < limit < high:
            limit = (low + high) / 2
    if best is None:
        raise ValueError(_too_small(model, budget, min(tried.values()), fixed))
    found = [x for x, again in zip(segments, best) if again]
    _let(segments, as_it_is)
    _let(found, recomputed)
    return found


def measure_segments(model, inputs):
    """Measure the segments that `recompute` would choose.

    Returns:
        List of `Cost`, and the most bytes of the forward and the backward pass
        with all of them recomputed; `[], None` if there is nothing to gain.
    """
    try:
        chosen = choose_segments(model, "auto")
    except ValueError:
        return [], None
    before, segments = install(model, chosen)
    try:
        if before:
            return [], None  # it is what the model does
        segments, costs = _costs(model, segments, inputs)
        _let(segments, recomputed)
        return costs, peak_of_passes(model, inputs)
    finally:
        reinstall(model, before)


def _let(segments, way):
    for group in segments:
        for segment in group:
            segment.way = way


class _Probe:
    """Runs a segment as it is, and gives to it what it computes."""

    def __init__(self, number, order):
        self.number = number
        self.order = order
        self.inputs = 0

    def __call__(self, run, arguments, body, training):
        if self.number not in self.order:
            self.order.append(self.number)
        self.inputs = bytes_of(arguments)
        with backend.label(str(self.number)):
            return as_it_is(run, arguments, body, training)


def _costs(model, segments, inputs):
    """Return the segments in the order in which they run, and their costs."""
    order = []
    probes = [_Probe(number, order) for number in range(len(segments))]
    for group, probe in zip(segments, probes):
        _let([group], probe)
    fn, params = as_function(model)
    kept = backend.saved_bytes_by_label(fn, params, inputs)
    products = backend.products_by_label(fn, params, inputs)
    costs = [
        Cost(
            kept.get(str(k), 0),
            probes[k].inputs,
            products.get(str(k), 0) + BYTE * kept.get(str(k), 0),
        )
        for k in order
    ]
    return [segments[k] for k in order], costs


def _too_small(model, budget, least, fixed):
    parts = {
        "parameters": fixed.parameters,
        "their gradients": fixed.gradients,
        "the state of the optimizer": fixed.optimizer_state,
    }
    parts = [f"{in_words(size)} are {name}" for name, size in parts.items()]
    return (
        f"No training step of model '{model.name}' with this batch fits into "
        f"{in_words(budget)}. The least is {in_words(least)}, of which "
        f"{', '.join(parts)}. For less, take a smaller batch or micro-batches, "
        "an optimizer with less state, such as `optimizers.Adam8bit`, "
        "`MicroAdam` or `SinkGD`, or train fewer parameters (`enable_lora`)."
    )
