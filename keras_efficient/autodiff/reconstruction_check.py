"""Whether the backward pass of a run came back to the inputs it began with.

The forward pass keeps a few of the numbers that the blocks get, about a
thousand a stream, and the backward pass compares them with those it
reconstructed. With a the kept numbers of stream j and b the reconstructed
ones, the error is

```
error = max_j rms(a_j - b_j) / max_j rms(a_j)
```

Measured on runs of 8 to 60 blocks (additive, affine, with momentum, with and
without normalization), the error of the gradient was between 1/5 and 8 times
this error, wherever both were below 1.
"""

import functools
import math
import warnings

from keras import ops

from keras_efficient import backend
from keras_efficient.kernels.ffi import xla_report

TOLERANCE = 0.03
SAMPLES = 1024
# Of the root mean square of all streams: below, errors are rounding.
_SMALLEST = 1e-4


class ReconstructionCheck:
    """The check of one run.

    Args:
        name: String, the name of the run in messages.
        mode: `"warn"`, or `"error"`: an error where Python runs the backward
            pass, and where that is compiled a warning and gradients of NaN.
    """

    def __init__(self, name, mode):
        self.mode = mode
        self.message = _MESSAGE.format(name=name)

    def keep(self, streams):
        """Return what `failed` compares with: samples of streams."""
        # Copies: on PyTorch samples are views of all that they are from.
        return [ops.copy(sample(x)) for x in streams]

    def failed(self, kept, streams):
        """Whether streams are not those that `keep` saw: a boolean tensor."""
        size = functools.reduce(
            ops.maximum, [ops.max(ops.abs(a), initial=_SMALLEST) for a in kept]
        )
        scale = functools.reduce(
            ops.maximum, [_rms(a / size) for a in kept], _SMALLEST / size
        )
        error = functools.reduce(
            ops.maximum,
            [_rms((a - sample(b)) / size) for a, b in zip(kept, streams)],
        )
        # An error that is NaN is not small.
        return ops.logical_not(error <= TOLERANCE * scale)

    def sound(self, failed, finite):
        """Let it be known if one of `failed` holds.

        Args:
            failed: List of what `failed` returned.
            finite: Boolean tensor, what `is_finite` said of the outputs. If
                these are NaN already, it is no news that the inputs are, too.

        Returns:
            `None`, or in a compiled program a number to be given to `mark`.
        """
        failed = functools.reduce(ops.logical_or, failed)
        failed = ops.logical_and(failed, finite)
        zero = backend.alarm(
            failed,
            self._warn,
            self._fail if self.mode == "error" else None,
            self._warn_in_program if xla_report.can_report(failed) else None,
        )
        if zero is not None and self.mode == "error":
            zero = ops.where(failed, float("nan"), zero)
        return zero

    def mark(self, gradients, number):
        """Add what `sound` returned to a list of gradients or `None`.

        It is NaN or zero. XLA leaves out what nobody needs: a warning hangs
        on the smallest of the gradients, NaN is added to all of them.
        """
        found = [d for d in gradients if d is not None]
        smallest = min(found, key=_entries, default=None)
        return [
            _add(d, number)
            if d is not None and (d is smallest or self.mode == "error")
            else d
            for d in gradients
        ]

    def _warn(self):
        warnings.warn(self.message, stacklevel=2)

    def _fail(self):
        raise FloatingPointError(self.message)

    def _warn_in_program(self, failed):
        return xla_report.report(failed, self.message)


def is_finite(streams):
    """Whether no number is NaN or infinite: a boolean tensor.

    (Nor so large that their sum is.)
    """
    sums = [ops.sum(ops.cast(x, "float32")) for x in streams]
    return functools.reduce(ops.logical_and, map(ops.isfinite, sums))


def sample(x):
    """Every n-th number of `x`, as float32; an odd n meets all channels."""
    size = functools.reduce(lambda a, b: a * b, ops.shape(x), 1)
    step = size // SAMPLES // 2 * 2 + 1
    x = ops.reshape(x, (-1,))[::step]
    # In a graph of TensorFlow a step that is a tensor takes the rank away.
    return ops.cast(ops.reshape(x, (-1,)), "float32")


def _add(x, scalar):
    return x + ops.cast(scalar, x.dtype)


def _rms(x):
    """The root mean square of a vector; 0 if it is empty."""
    n = ops.shape(x)[0]  # an integer, or in a graph of TensorFlow a tensor
    n = (
        max(n, 1)
        if isinstance(n, int)
        else ops.cast(ops.maximum(n, 1), x.dtype)
    )
    return ops.sqrt(ops.sum(ops.square(x)) / n)


def _entries(x):
    """The number of entries; axes of unknown size count as large."""
    return math.prod(size or math.inf for size in x.shape)


_MESSAGE = (
    "The backward pass of '{name}' did not come back to its inputs: the error "
    f"of the reconstruction is above {TOLERANCE:.0%}, and the gradient of this "
    "step is wrong by about as much or more. Rounding errors grow from block "
    "to block where blocks shrink what they undo (scales or a momentum below "
    "1) or where streams grow without a normalization. Normalize what "
    "sub-layers take, use fewer blocks a run or a momentum closer to 1, "
    "`ReversibleSequence(..., exact=True)` for blocks that only add, or "
    "`reversible=False`, which stores activations. "
    "`keras_efficient.utils.check_reversibility` tells which block it is; "
    "`ReversibleSequence(..., check=None)` turns this message off."
)
