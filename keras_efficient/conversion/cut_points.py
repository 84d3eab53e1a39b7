"""Where to cut a graph of layers so that little is kept."""

import math

import keras
import numpy as np

from keras_efficient.conversion.layer_tree import leaves


def cut(calls, outputs):
    """Cut a graph where few bytes cross.

    With the calls of layers in a row, segment k being those after cut k - 1
    up to cut k, the cuts minimise

        (what crosses some cut) + (all in the last segment)
        + max over the others of (all in a segment),

    which is kept throughout the backward pass, and recomputed at one time.
    The last segment is not recomputed: its turn would be at once. A tensor
    that crosses several cuts counts at the first. For each bound of the
    maximum the rest is a shortest path, found exactly.

    Args:
        calls: List of `GraphCall`s, in an order to run them.
        outputs: List of the symbolic tensors that are asked for.

    Returns:
        List of lists of calls; the last is not to be recomputed. Or `None`,
        if that would save less than a fifth of the activations.
    """
    weights, kept = list(map(weight, calls)), _kept(calls, outputs)
    before = np.concatenate([[0.0], np.cumsum(weights)])
    best, cuts = 0.8 * before[-1], None
    for bound in _bounds(weights, before):
        cost, path = _shortest_path(before, kept, bound)
        if cost + bound < best:
            best, cuts = cost + bound, path
    if cuts is None:
        return None
    starts, ends = [0, *cuts], [*cuts, len(calls)]
    return [calls[a:b] for a, b in zip(starts, ends)]


def _bounds(weights, before):
    """What the largest segment may weigh: all there is, but 100 at most."""
    all_weights = np.unique(np.subtract.outer(before, before))
    bounds = all_weights[all_weights >= max(weights, default=0)]
    if len(bounds) > 100:
        bounds = np.geomspace(max(bounds[0], 1), bounds[-1], 100)
    return bounds


def _shortest_path(before, kept, bound):
    """The cuts that let fewest numbers be kept, segments being bounded.

    Args:
        before: Array, `before[j]` is the weight of the first `j` calls.
        kept: Array, `kept[i, j]` is what crosses a cut before call `j` and
            was made by call `i` or a later one.
        bound: Number, the largest weight of a segment but the last.

    Returns:
        The numbers kept, those of the last segment included; list of cuts.
    """
    count = len(before) - 1
    least, previous = np.full(count, np.inf), np.zeros(count, int)
    least[0] = 0
    for j in range(1, count):
        first = min(np.searchsorted(before, before[j] - bound), j - 1)
        costs = least[first:j] + kept[first:j, j]
        previous[j] = first + np.argmin(costs)
        least[j] = costs.min()
    j = int(np.argmin(least + before[-1] - before[:-1]))
    cost, cuts = least[j] + before[-1] - before[j], []
    while j:
        cuts.insert(0, j)
        j = int(previous[j])
    return cost, cuts


def _kept(calls, outputs):
    """`kept[i, j]`: numbers made by call `i` or later that cross cut `j`."""
    count = len(calls)
    last = {id(x): count for x in outputs}
    for i, call in reversed(list(enumerate(calls))):
        for x in call.reads:
            last.setdefault(id(x), i)
    kept = np.zeros((count + 1, count + 1))
    for i, call in enumerate(calls):
        for x in call.makes:
            kept[i, i + 1 : last.get(id(x), i) + 1] += _numbers(x)
    return np.cumsum(kept[::-1], axis=0)[::-1]


def weight(call):
    """Numbers that a call keeps, by its outputs and its layers."""
    layers = 1
    if isinstance(call.operation, keras.layers.Layer):
        layers = max(1, leaves([call.operation]))
    return layers * sum(map(_numbers, call.makes))


def _numbers(x):
    return math.prod(n or 1 for n in x.shape)
