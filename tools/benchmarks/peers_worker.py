"""The process of `peers.py` that measures one task."""

import statistics

import numpy as np
import torch

from benchmarks import peers_tasks
from benchmarks.reversible_worker import short
from benchmarks.reversible_worker import take_turns

WARM_UP = 3


def run(task, options):
    """Return a row for each contender, as a dictionary for JSON."""
    makers = getattr(peers_tasks, task)(options)
    contenders, rows = {}, {}
    for name, make in makers.items():
        rows[name] = None  # the order of the table
        try:
            contender = make()
            contender.found = contender.look()
            for _ in range(WARM_UP):
                contender.step()
        except ImportError as error:
            rows[name] = {"why": f"skipped: {error}"}
        except Exception as error:
            rows[name] = {"why": f"fails: {short(error)}"}
        else:
            contenders[name] = contender
    reference = next(iter(rows))
    seconds = take_turns(contenders, options.steps)
    for name, contender in contenders.items():
        pairs = zip(seconds[name], seconds[reference])
        rows[name] = {
            **compared(contender.found, contenders[reference].found),
            "median ms": 1000 * statistics.median(seconds[name]),
            "ratio": statistics.median(a / b for a, b in pairs),
            "rounds ms": [1000 * s for s in seconds[name]],
        }
    return rows


def compared(found, reference):
    """Return bytes, and the errors of values and gradients."""
    return {
        "kept": found["kept"],
        **{
            key: relative_error(found[key], reference[key])
            for key in ("values", "gradients")
            if key in found
        },
    }


def relative_error(ours, theirs):
    """The distance of two lists of arrays over the size of the second."""
    ours, theirs = map(_joined, (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _joined(tensors):
    return np.concatenate(
        [torch.as_tensor(x).detach().cpu().double().ravel() for x in tensors]
    )
