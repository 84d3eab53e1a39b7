"""What `check_reversibility` returns, and why a check fails."""

import typing


class Reversibility(typing.NamedTuple):
    """What `check_reversibility` found.

    Attributes:
        reconstruction: For each block, the largest error of its reconstructed
            inputs, relative to their largest entry.
        gradient: For each block, the relative error (in the 2-norm) of the
            gradient of all that is trainable in it: 0 for a block without
            variables, NaN if no gradient arrives there, so that there is
            nothing to compare. Empty for layers that store their activations.
        inputs: The relative error of the gradient of the inputs; `None` for
            layers that store their activations.
        discrete: Names of the sub-layers that make discrete choices.
        passed: Boolean, the verdict.
        reason: String, why it failed and what to do; empty if it passed.
    """

    reconstruction: list
    gradient: list
    inputs: float | None
    discrete: list
    passed: bool
    reason: str


RECONSTRUCTION = (
    "the inputs of block '{name}' are not what its outputs are undone to. If "
    "`uncouple` is your own, look there first. Else rounding errors have grown "
    "too large: take a momentum closer to 1, a smaller `clamp`, fewer blocks "
    "a run, sub-layers that normalize their inputs, or `exact=True` for "
    "blocks that only add."
)
NO_GRADIENT = (
    "no gradient arrives at the variables of block '{name}', so there is "
    "nothing to compare. Give other inputs, or initialize what is behind "
    "them with other values than zeros."
)
GRADIENT = (
    "the gradient of block '{name}' is not that of its plain twin. If "
    "`pull_back` or `uncouple` is your own, look there. Else it has a sub-"
    "layer that does not give the same result twice, or that reads variables "
    "which are not found: train with `reversible=False` and report it."
)
OTHERS = (
    "a trainable tensor that belongs to no block, and that a sub-layer reads, "
    "gets another gradient than in the plain twin. Make it a variable of the "
    "sub-layer, or train with `reversible=False`."
)
INPUTS = (
    "the gradient of the {name} is not that of the plain twin. If `pull_back` "
    "is your own, look there; else train with `reversible=False`."
)
DISCRETE = (
    "sub-layer '{name}' makes discrete choices, which flip in the "
    "recomputation. Use `exact=True`, or keep it out of the run."
)
INVERSE = (
    "`inverse(layer(inputs))` of '{name}' is not the inputs. The inverse of a "
    "linear layer is exact where its kernel is orthonormal "
    "(`keras_efficient.metrics.OrthonormalityError`) and it has no fewer "
    "outputs than inputs; train it with a loss on the difference."
)
