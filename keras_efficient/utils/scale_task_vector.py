import numpy as np
from keras import ops

from keras_efficient.backend.arguments import check_numbers


def scale_task_vector(
    pretrained, finetuned, blocks, alpha=None, beta=0.9, head=1.0
):
    """Scale what fine-tuning changed, less in the first blocks (LiNeS).

    It brings back what a fine-tuned model has forgotten, or merges several
    fine-tuned ones; it trains nothing and needs no data. The scale of block l
    of L, counted from 0:

    ```
    weights = pretrained + scale_l tau,   scale_l = alpha + beta l / (L - 1)
    ```

    with tau what fine-tuning changed; for several models the sum of all. What
    comes before the first block, such as embeddings, has `alpha`, what comes
    after the last has `head`. (The authors' code gives `alpha` to both.)

    Variables that are not trained, such as statistics of
    BatchNormalization, are those of the fine-tuned model, or their mean: they
    are no task vectors, and are better recomputed. Where shapes differ, as in
    the heads of two tasks, the fine-tuned weights stay as they are.

    Args:
        pretrained: Built `keras.Model` or layer.
        finetuned: The same model after fine-tuning, or a list of such.
        blocks: List of at least two strings, in order: each is a part between
            slashes of the paths of the block's variables in `pretrained`,
            such as the name of a layer.
        alpha: Float. Defaults to `None`: `1 - beta` for one model; to merge,
            `sum_i |tau_i|_1 / (models |tau|_1)`.
        beta: Float. Defaults to `0.9`.
        head: Float. Defaults to `1.0`.

    Returns:
        List of arrays for `set_weights` of the fine-tuned model.

    Raises:
        ValueError: models do not match, a block has no variables, or a scale
            is not finite.

    Example:

    ```python
    layers = [keras.layers.Dense(4, name=f"block_{i}") for i in range(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    finetuned = keras.models.clone_model(model)
    weights = keras_efficient.utils.scale_task_vector(
        model, finetuned, blocks=["block_0", "block_1", "block_2"]
    )
    finetuned.set_weights(weights)
    ```

    Reference:
        - [Wang et al., 2024](https://arxiv.org/abs/2410.17146)
    """
    check_numbers("(-inf, inf)", beta=beta, head=head)
    if alpha is not None:
        check_numbers("(-inf, inf)", alpha=alpha)
    several = isinstance(finetuned, (list, tuple))
    models = list(finetuned) if several else [finetuned]
    sizes = {len(m.weights) for m in [pretrained, *models]}
    if len(sizes) > 1:
        raise ValueError(
            "All models must have the same weights. Received: "
            f"{sorted(sizes)} variables"
        )
    place = _places(pretrained.weights, blocks)
    start = [_array(v) for v in pretrained.weights]
    ends = [[_array(v) for v in m.weights] for m in models]
    moves = [
        v.trainable and all(end[i].shape == start[i].shape for end in ends)
        for i, v in enumerate(pretrained.weights)
    ]
    if not several:
        alpha = 1 - beta if alpha is None else alpha
    elif alpha is None:
        alpha = _size_of_each(start, ends, moves)
    result = []
    for i, first in enumerate(start):
        if not moves[i]:
            same = all(end[i].shape == ends[0][i].shape for end in ends)
            mean = np.mean([end[i] for end in ends], 0) if same else ends[0][i]
            result.append(mean.astype(ends[0][i].dtype))
            continue
        tau = sum(end[i].astype("float64") - first for end in ends)
        scale = alpha
        if place[i] is not None:
            scale = alpha + beta * place[i] / (len(blocks) - 1)
        elif any(p is not None for p in place[:i]):
            scale = head
        result.append((first + scale * tau).astype(first.dtype))
    return result


def _array(variable):
    return np.array(ops.convert_to_numpy(variable))


def _places(variables, blocks):
    """Return for each variable the number of its block, or `None`."""
    if len(blocks) < 2:
        raise ValueError(
            f"`blocks` must be at least two. Received: blocks={blocks}"
        )
    places = []
    for variable in variables:
        parts = variable.path.split("/")
        found = [i for i, name in enumerate(blocks) if name in parts]
        places.append(found[0] if found else None)
    missing = [b for i, b in enumerate(blocks) if i not in places]
    if missing:
        raise ValueError(
            "Each of `blocks` must be a part of the paths of some variables. "
            f"Received: {missing}, for paths such as {variables[0].path!r}"
        )
    return places


def _size_of_each(start, ends, moves):
    """Return sum_i |tau_i|_1 / (models |sum_i tau_i|_1)."""
    each = whole = 0.0
    for i, first in enumerate(start):
        if moves[i]:
            taus = [end[i].astype("float64") - first for end in ends]
            each += sum(np.abs(tau).sum() for tau in taus)
            whole += np.abs(sum(taus)).sum()
    return each / (len(ends) * whole) if whole else 1.0
