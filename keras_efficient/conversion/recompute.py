"""A model that exists, made to recompute its activations in place."""

from keras_efficient.autodiff.storage import check_store
from keras_efficient.conversion.arguments import as_batch
from keras_efficient.conversion.arguments import as_bytes
from keras_efficient.conversion.arguments import check_model
from keras_efficient.conversion.choose_segments import choose_segments
from keras_efficient.conversion.fit_budget import fit_budget
from keras_efficient.conversion.install import install
from keras_efficient.conversion.install import reinstall


def recompute(model, segments="auto", inputs=None, budget=None, store=None):
    """Make a model recompute its activations in training, in place.

    The model stays the object that it is, with its class, variables, summary
    and config, and computes the same function: outputs, gradients, batch
    statistics, random numbers, losses and masks. While it trains, what is
    inside its segments is not kept for the backward pass, but computed again,
    at the cost of about one more evaluation, a third of the time of a step.
    Calls with another `training` than `True`, such as those of `predict` and
    of `generate`, run as before. (A subclass of `keras.Model` need not pass
    `training` on to its layers: there all calls run through the segments.)

    It is a property of the object, not of what is saved: a saved model loads
    without this library, and copies and clones are plain; ask again for them.
    Call it on the model that is compiled and trained, before or after
    `compile`, `fit`, `enable_lora` or `quantize`. A second call replaces what
    the first one did.

    Args:
        model: A built `keras.Model`.
        segments: What is recomputed as one, keeping only what goes into it:

            - `"auto"`: block layers, that is layers of layers of which there
              are several of one class, one segment each (transformers);
              graphs of many small layers (ResNet, U-Net) are cut where few
              bytes cross, skips that cross a cut being kept;
            - a list of layers or of their names, one segment each. An entry
              may be a list itself, of layers of a functional model that
              follow each other: they are one segment;
            - a function of a layer, which returns `True` for each layer that
              is to be a segment. Layers below one are not asked for;
            - `None`: nothing; it undoes what was done before.

            Defaults to `"auto"`.
        inputs: A batch, for a `budget`: array, tensor or a nested structure of
            them; a dataset, whose first batch is taken; or the number of
            examples, for a model that knows the shape of its inputs. Defaults
            to `None`.
        budget: Number of GiB, or a string such as `"8GiB"`: what a training
            step of `inputs` may take in all, with parameters and the state of
            the optimizer that the model is compiled with. Then as few of the
            segments are recomputed as makes it fit. What segments keep and
            the multiplications that they take is measured, the least work
            found by dynamic programming, and the peak of the step measured,
            see `conversion/fit_budget.py`; this may take minutes. Defaults to
            `None`: all segments are recomputed.
        store: How what goes into a segment is kept: `"bfloat16"`, in half of
            the bytes, with gradients that are wrong by about 0.1 %, or
            `"host"`, on PyTorch in the memory of the host. Defaults to `None`,
            as it is.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a `keras.Model`, or `segments` is none of
            the above.
        ValueError: `store` is none of its choices, the model is not built,
            there is nothing to be gained, nothing fits the budget, or layers
            are unknown, not built, in several segments, or do not follow each
            other. The model is unchanged.

    Example:

    ```python
    model = keras.applications.ResNet50(weights=None)
    keras_efficient.recompute(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    ```

    Reference:
        - [Chen et al., 2016](https://arxiv.org/abs/1604.06174)
    """
    check_model(model)
    if (inputs is None) != (budget is None):
        raise ValueError(
            "`inputs` and `budget` belong together: the budget is for a step "
            f"of these inputs. Received: budget={budget} and "
            f"{'no inputs' if inputs is None else 'inputs'}."
        )
    check_store(store)
    chosen = [] if segments is None else choose_segments(model, segments)
    if budget is not None:
        budget, inputs = as_bytes(budget), as_batch(model, inputs)
    before, found = install(model, chosen, store)
    if budget is not None:
        try:
            optimizer = getattr(model, "optimizer", None)
            fit_budget(model, found, inputs, budget, optimizer)
        except BaseException:
            reinstall(model, before)
            raise
    if getattr(model, "train_function", None) is not None:
        model.train_function = None  # it was compiled for another model
    return model
