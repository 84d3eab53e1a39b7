"""Which segments to recompute, so that a step fits and least work is added."""

from typing import NamedTuple


class Cost(NamedTuple):
    """What a segment takes.

    Attributes:
        kept: Bytes that it keeps for its backward pass.
        inputs: Bytes that it keeps where it is recomputed.
        work: What it takes to compute it once.
    """

    kept: int
    inputs: int
    work: float


def least_work(costs, limit, places=2000):
    """Choose the segments to recompute.

    With `h_i = inputs_i` for a segment that is recomputed and `h_i = kept_i`
    for any other, the backward pass of segment i holds

        h_1 + ... + h_{i-1} + kept_i (+ inputs_i, if it is recomputed),

    as segments behind it are done. The sum of the work of those recomputed is
    minimised with all this within a limit. Segments are gone through in their
    order, with the pairs of bytes held and work done that are possible and of
    which none is at least as good in both: the optimum. Of more such pairs
    than `places`, bytes are rounded up to the limit over `places`: then what
    is chosen is the optimum for a limit lower by `len(costs) / places`, or a
    better one.

    Args:
        costs: List of `Cost`, in the order of the forward pass.
        limit: Bytes.
        places: Integer.

    Returns:
        List of booleans; `None` if nothing fits.
    """
    states = {0: (0.0, ())}  # bytes held to the work and the choices
    for cost in costs:
        following = {}
        for held, (work, chosen) in states.items():
            ways = [(held + cost.kept, held + cost.kept, work)]
            again = held + cost.inputs
            ways.append((again, again + cost.kept, work + cost.work))
            for is_chosen, (held_then, peak, work_then) in enumerate(ways):
                if peak <= limit:
                    found = (work_then, (chosen, bool(is_chosen)))
                    best = following.get(held_then)
                    if best is None or work_then < best[0]:
                        following[held_then] = found
        states = _best(following)
        if len(states) > places:
            states = _best(_rounded(states, limit / places))
        if not states:
            return None
    _, chosen = min(states.values(), key=lambda state: state[0])
    choices = []
    while chosen:
        chosen, is_chosen = chosen
        choices.insert(0, is_chosen)
    return choices


def peak_of(costs, chosen):
    """The most bytes that are held while segments go backward."""
    held = peak = 0
    for cost, is_chosen in zip(costs, chosen):
        held += cost.inputs if is_chosen else cost.kept
        peak = max(peak, held + (cost.kept if is_chosen else 0))
    return peak


def least_peak(costs):
    """The lowest limit that some choice keeps, up to a thousandth."""
    low, high = 0, sum(cost.kept for cost in costs)
    while high - low > high / 1000:
        middle = (low + high) / 2
        if least_work(costs, middle) is None:
            low = middle
        else:
            high = middle
    return high


def _best(states):
    """Those with less work than all that hold no more."""
    found, least = {}, float("inf")
    for held in sorted(states):
        if states[held][0] < least:
            found[held] = states[held]
            least = states[held][0]
    return found


def _rounded(states, unit):
    found = {}
    for held, state in states.items():
        place = -(-held // unit) * unit
        if place not in found or state[0] < found[place][0]:
            found[place] = state
    return found
