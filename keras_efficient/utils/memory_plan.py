import itertools

import keras

from keras_efficient import conversion
from keras_efficient import optimizers
from keras_efficient.conversion.arguments import as_batch
from keras_efficient.conversion.arguments import as_bytes
from keras_efficient.conversion.arguments import batch_size
from keras_efficient.conversion.arguments import in_words
from keras_efficient.conversion.step_bytes import bytes_of
from keras_efficient.utils.measured_step import Change
from keras_efficient.utils.progress import progress
from keras_efficient.utils.step_measurement import LEVERS
from keras_efficient.utils.step_measurement import OPTIMIZERS
from keras_efficient.utils.step_measurement import check_built
from keras_efficient.utils.step_measurement import measure_step


def memory_plan(model, inputs, budget, optimizer=None, allow=LEVERS, verbose=1):
    """Find what to change so that a training step fits into a budget.

    The step is measured once as it is, with the levers that the model has
    already, and what others would take is computed from that. A loss that
    `chunk_loss` knows is in it, if the model is compiled with one. All
    combinations of levers are compared. Of those that fit,
    the one that costs least is the plan: the time that it adds, and something
    for a lever that changes what is computed (a few hundredths of a step for
    the state of the optimizer and for micro-batches, a fifth for 16 bits;
    `recompute` and `chunk_loss` compute the same).

    - "recompute": `keras_efficient.recompute`, of as few segments as will do;
    - "optimizer": `Adam8bit`, `MicroAdam` or `SinkGD` instead of one with as
      many bytes of state as Adam;
    - "bfloat16": weights of 16 bits, with what rounding leaves beside them;
    - "chunk_loss": `keras_efficient.chunk_loss`, for models of tokens;
    - "micro_batches": `keras_efficient.micro_batches`.

    Args:
        model: A built Keras model.
        inputs: A batch: array, tensor or a nested structure of them; a
            dataset, whose first batch is taken; or the number of examples,
            for a model that knows the shape of its inputs.
        budget: Number of GiB, or a string such as `"8GiB"`: what a step may
            take in all.
        optimizer: `keras.optimizers.Optimizer` or its name. Defaults to
            `None`: that of the compiled model, or none.
        allow: Tuple of the levers to consider, or one. Defaults to all.
        verbose: `0` or `1`. Whether to print the plan. Defaults to `1`.

    Returns:
        `MemoryPlan`. `plan.lines` are to be pasted into a program, and
        `plan.apply()` does what can be done in place.

    Raises:
        ValueError: The model is not built, or an argument is none of the
            above.

    Example:

    ```python
    model = keras.applications.ResNet50(weights=None)
    model.compile("adam", "sparse_categorical_crossentropy")
    plan = keras_efficient.utils.memory_plan(model, 8, budget="1GiB")
    plan.apply()
    ```
    """
    allow = (allow,) if isinstance(allow, str) else allow
    unknown = set(allow) - set(LEVERS)
    if unknown:
        raise ValueError(
            f"`allow` may have {LEVERS}. Received: {sorted(unknown)}"
        )
    budget = as_bytes(budget)
    check_built(model)
    with progress(verbose) as advance:
        inputs = as_batch(model, inputs)
        step = measure_step(model, inputs, optimizer, advance, allow)
    plan = make_plan(model, batch_size(inputs), step, budget, allow)
    if verbose:
        print(plan)
    return plan


def make_plan(model, size, step, budget, allow=LEVERS):
    """Return the `MemoryPlan` for a `MeasuredStep`."""
    plain = Change()
    if step.peak(plain) <= budget:
        return MemoryPlan(model, size, step, budget, plain)
    names, fixed = [None], step.fixed["as it is"]
    # With less state than two moments it is another kind of optimizer.
    is_like_adam = fixed.optimizer_state >= 1.5 * fixed.gradients > 0
    if "optimizer" in allow and is_like_adam:
        names += OPTIMIZERS
    halves = [False]
    if "bfloat16" in allow and _is_wide(model):
        halves.append(True)
    chunks = [False]
    if "chunk_loss" in allow and step.logits:
        chunks.append(True)
    counts = [1]
    if "micro_batches" in allow:
        counts = [n for n in (1, 2, 4, 8, 16, 32) if size % n == 0]
    found = []
    for combination in itertools.product(names, halves, chunks, counts):
        change = Change(*combination)
        found.append(change)
        if "recompute" in allow and step.costs and step.peak(change) > budget:
            more = step.with_recompute(change, budget)
            found.append(more or change._replace(recompute="all"))
    fitting = [change for change in found if step.peak(change) <= budget]
    best = (
        min(fitting, key=step.reluctance)
        if fitting
        else min(found, key=lambda x: (step.peak(x), step.reluctance(x)))
    )
    return MemoryPlan(model, size, step, budget, best)


def _is_wide(model):
    """Whether most bytes of the weights are float32."""
    wide = [v for v in model.weights if v.dtype == "float32"]
    return 2 * bytes_of(wide) > bytes_of(model.weights)


class MemoryPlan:
    """What `memory_plan` has found; it prints as a few lines.

    Attributes:
        budget: Bytes.
        peak: Bytes at the peak of a step with the plan, as predicted.
        peak_as_it_is: The same without.
        parts: Dictionary of the bytes in `peak`, by what they are for: weights,
            correction (what rounding to 16 bits leaves), optimizer, gradients,
            activations, logits (with their loss) and rest.
        parts_as_it_is: The same without the plan.
        fits: Boolean, whether `peak` is within the budget.
        extra_time: What the plan adds to a step, as a fraction of its time.
        levers: List of strings, those that the plan uses.
        lines: List of strings, the program to paste.
    """

    def __init__(self, model, size, step, budget, change):
        self.model = model
        self.change = change
        self.budget = round(budget)
        self.parts = step.parts(change)
        self.parts_as_it_is = step.parts(Change())
        self.peak = step.peak(change)
        self.peak_as_it_is = step.peak(Change())
        self.fits = self.peak <= budget
        self.extra_time = round(step.time(change), 3)
        self._size = size
        fixed = step.fixed["as it is"]
        self._gradients = fixed.gradients
        self._alone = sum(fixed[:3])
        self.levers = [
            name
            for name, used in (
                ("optimizer", change.optimizer),
                ("bfloat16", change.bfloat16),
                ("chunk_loss", change.chunk_loss),
                ("micro_batches", change.micro_batches > 1),
                ("recompute", change.recompute is not None),
            )
            if used
        ]
        self.lines = self._lines()

    def _recompute_arguments(self):
        """Those of `recompute`, after all other levers."""
        change = self.change
        if change.recompute == "all" or change.bfloat16:
            return {}
        count, budget = change.micro_batches, self.budget
        if count > 1:
            budget -= self._gradients  # what the others have added up
        return {"inputs": self._size // count, "budget": _megabytes(budget)}

    def _rate(self):
        optimizer = getattr(self.model, "optimizer", None)
        rate = getattr(optimizer, "learning_rate", 1e-3)
        return float(keras.ops.convert_to_numpy(rate))

    def _lines(self):
        change, lines = self.change, []
        if change.bfloat16:
            lines.append(
                'keras.config.set_dtype_policy("bfloat16")'
                "  # before the model is built"
            )
        if change.optimizer:
            lines.append(
                "model.compile(optimizer=keras_efficient.optimizers."
                f"{change.optimizer}({self._rate():g}), ...)"
            )
        if change.chunk_loss:
            lines.append("keras_efficient.chunk_loss(model)")
        if change.recompute is not None:
            arguments = self._recompute_arguments()
            more = "".join(f", {k}={x!r}" for k, x in arguments.items())
            lines.append(f"keras_efficient.recompute(model{more})")
        if change.micro_batches > 1:
            count = change.micro_batches
            lines.append(f"keras_efficient.micro_batches(model, {count})")
        return lines

    def apply(self):
        """Do what can be done in place, and return the model.

        A compiled model is compiled anew where the optimizer changes, with the
        same loss and metrics. A model that is built keeps the dtype of its
        weights: "bfloat16" is left to the user.

        Raises:
            NotImplementedError: A lever is not in this version of the library.
        """
        model, change = self.model, self.change
        missing = [
            name
            for name in ("chunk_loss", "micro_batches")
            if name in self.levers and not hasattr(conversion, name)
        ]
        if missing:
            raise NotImplementedError(
                f"This version has no {missing}. Make a plan without: "
                "`memory_plan(..., allow=...)`."
            )
        if change.optimizer and getattr(model, "compiled", False):
            optimizer = getattr(optimizers, change.optimizer)(self._rate())
            config = model.get_compile_config()
            serialize = keras.saving.serialize_keras_object
            config["optimizer"] = serialize(optimizer)
            model.compile_from_config(config)
        if change.chunk_loss:
            conversion.chunk_loss(model)
        if change.recompute is not None:
            conversion.recompute(model, **self._recompute_arguments())
        if change.micro_batches > 1:
            conversion.micro_batches(model, change.micro_batches)
        return model

    def as_dict(self):
        """Return all of it in dictionaries, lists, strings and numbers."""
        names = ("budget", "peak", "peak_as_it_is", "fits", "extra_time")
        names += ("parts", "parts_as_it_is")
        found = {name: getattr(self, name) for name in names}
        return {**found, "levers": self.levers, "lines": self.lines}

    def __str__(self):
        title = f"A training step takes {in_words(self.peak_as_it_is)}"
        budget = f"the budget of {in_words(self.budget)}"
        if not self.levers and self.fits:
            return f"{title}, which fits into {budget}."
        verb = "fits" if self.fits else "does not fit"
        if not self.fits:
            levers = ", ".join(self.levers) or "no lever"
            return (
                f"{title}, and {verb} into {budget}. Parameters, gradients "
                "and the state of the optimizer alone take "
                f"{in_words(self._alone)}. The least is "
                f"{in_words(self.peak)}, with {levers}: take a smaller batch, "
                "or train fewer parameters (`enable_lora`)."
            )
        lines = "\n".join(f"    {line}" for line in self.lines)
        return (
            f"{title}. It {verb} into {budget} with {in_words(self.peak)} and "
            f"{self.extra_time:.0%} more time:\n\n{lines}\n"
        )


def _megabytes(size):
    return f"{size / 1e6:.1f}MB"
