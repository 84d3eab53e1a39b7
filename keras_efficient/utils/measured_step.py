"""A training step as it was measured, and what it takes with levers."""

import math
from typing import NamedTuple

from keras_efficient.conversion.least_work import least_peak
from keras_efficient.conversion.least_work import least_work
from keras_efficient.conversion.least_work import peak_of


class Change(NamedTuple):
    """Levers that are used together.

    Attributes:
        optimizer: String, the name of one of this library, or `None`.
        bfloat16: Boolean, weights and activations of 16 bits.
        chunk_loss: Boolean.
        micro_batches: Integer, into how many a batch is divided.
        recompute: `None` for none, "all", or a list with a boolean for each
            segment.
    """

    optimizer: str | None = None
    bfloat16: bool = False
    chunk_loss: bool = False
    micro_batches: int = 1
    recompute: str | list | None = None


# What is added to the time of a step.
TIMES = {"Adam8bit": 0.01, "MicroAdam": 0.03, "SinkGD": 0.05}
# What a lever has against it besides: it changes what is computed.
RELUCTANCE = {"Adam8bit": 0.03, "MicroAdam": 0.05, "SinkGD": 0.1}
CHUNKED, HALF_PRECISION, MICRO_BATCH = 0.02, 0.2, 0.04
OTHER_STATISTICS = 0.3


class MeasuredStep(NamedTuple):
    """Bytes of a step of a model, by what they depend on.

    Attributes:
        fixed: Dictionary of `Fixed`, by "as it is" and names of optimizers.
        states: List of the bytes of the optimizer's state by variable.
        batch: Bytes of the inputs.
        gradient: Most bytes of the forward and the backward pass.
        recomputed: The same with all segments recomputed; `None` without.
        costs: List of `Cost` of the segments that may be recomputed.
        logits: Bytes of an output of tokens by classes; 0 for others.
        mixes_examples: Boolean, whether there are statistics of a batch, so
            that micro-batches compute something else.
        scores: Bytes of `gradient` that logits and their loss add; `None` where
            the loss is not known.
        released: Bytes of the largest gradient where each is gone once it is
            used; 0 where all are there in the end.
    """

    fixed: dict
    states: list
    batch: int
    gradient: int
    recomputed: int | None
    costs: list
    logits: int
    mixes_examples: bool = False
    scores: int | None = None
    released: int = 0

    def peak(self, change):
        """Predict the bytes at the peak of a step."""
        return sum(self.parts(change).values())

    def parts(self, change):
        """Predict the bytes at the peak of a step, by what they are for."""
        fixed = self.fixed[change.optimizer or "as it is"]
        parameters, _, state, update, correction = fixed
        state -= correction
        passes = self._passes(change.recompute)
        logits = self.logits if self.scores is None else self.scores
        if change.chunk_loss:
            passes, logits = passes - logits, 0
        gradients = self.released or fixed.gradients
        activations = max(passes - gradients, 0)
        logits = min(logits, activations)
        activations -= logits
        if change.bfloat16:
            # With 8 bits a weight for what rounding to 16 bits leaves.
            correction += fixed.gradients // 4
            parameters, gradients = parameters // 2, gradients // 2
            logits, activations = logits // 2, activations // 2
            update = update // 2
        in_passes = min(passes, gradients)
        if change.micro_batches > 1:
            logits = math.ceil(logits / change.micro_batches)
            activations = math.ceil(activations / change.micro_batches)
        rest = max(update - (in_passes + logits + activations), 0)
        if change.micro_batches > 1:
            in_passes += gradients  # of the micro-batches before
        return {
            "weights": parameters,
            "correction": correction,
            "optimizer": state,
            "gradients": round(in_passes),
            "activations": round(activations),
            "logits": round(logits),
            "rest": round(self.batch + rest),
        }

    def _passes(self, recompute):
        """Bytes of the forward and the backward pass.

        What is in between the two that were measured is interpolated by what
        segments hold.
        """
        none, every = self._held(None), self._held("all")
        if recompute is None or none == every:
            return self.gradient
        part = (none - self._held(recompute)) / (none - every)
        return self.gradient - part * (self.gradient - self.recomputed)

    def _held(self, recompute):
        if recompute is None or recompute == "all":
            recompute = [recompute == "all" for _ in self.costs]
        return peak_of(self.costs, recompute)

    def time(self, change):
        """Predict what is added to a step, as a fraction of its time."""
        added = TIMES.get(change.optimizer, 0)
        added += CHUNKED if change.chunk_loss else 0
        added += 0.01 * (change.micro_batches - 1)
        if change.recompute is not None:
            chosen = change.recompute
            if chosen == "all":
                chosen = [True for _ in self.costs]
            pairs = zip(self.costs, chosen)
            again = sum(cost.work for cost, is_chosen in pairs if is_chosen)
            total = sum(cost.work for cost in self.costs)
            added += again / max(3 * total, 1)
        return added

    def reluctance(self, change):
        """What a lever costs, its time included."""
        doublings = math.log2(change.micro_batches)
        mixed = self.mixes_examples and change.micro_batches > 1
        return (
            self.time(change)
            + RELUCTANCE.get(change.optimizer, 0)
            + (HALF_PRECISION if change.bfloat16 else 0)
            + MICRO_BATCH * doublings
            + (OTHER_STATISTICS if mixed else 0)
        )

    def with_recompute(self, change, budget):
        """Add as little recomputation to a change as makes a step fit.

        Returns:
            The `Change`, or `None` if all of it is not enough.
        """
        least = least_work(self.costs, least_peak(self.costs))
        if self.peak(change._replace(recompute=least)) > budget:
            return None
        low, high = least_peak(self.costs), self._held(None)
        found = least
        for _ in range(12):
            middle = (low + high) / 2
            chosen = least_work(self.costs, middle)
            if self.peak(change._replace(recompute=chosen)) > budget:
                high = middle
            else:
                low, found = middle, chosen
        return change._replace(recompute=found)
