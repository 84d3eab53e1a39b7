import keras

from keras_efficient.conversion.to_tune_mode import is_tuned
from keras_efficient.layers.normalization.alpha_bn import AlphaBN
from keras_efficient.layers.normalization.unmix_tns import UnMixTNS

METHODS = {"alpha": AlphaBN, "unmix": UnMixTNS}


def adapt_batch_norm(model, method="alpha", **settings):
    """Let a trained model normalize test data by what they are themselves.

    It is for inference on data that look different from the training data; it
    trains nothing, and is no help where they look the same.

    Every `keras.layers.BatchNormalization` of the model gets another layer in
    its place, which starts from its weights. With `"unmix"`, those that see no
    places, as behind a `Dense`, stay. All other layers are those of `model`
    itself, with the same weights; `model` goes on as it was.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        method: `"alpha"`, `keras_efficient.layers.AlphaBN`, or `"unmix"`,
            `keras_efficient.layers.UnMixTNS`. Defaults to `"alpha"`.
        **settings: Arguments of that layer, such as `target_weight`.

    Returns:
        A new `keras.Model`.

    Raises:
        ValueError: `method` is none of these, there is no layer to replace,
            it is in tune mode, or the model is neither Functional nor
            Sequential.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3),
        keras.layers.BatchNormalization(),
    ])
    adapted = keras_efficient.utils.adapt_batch_norm(model, target_weight=0.5)
    ```

    Reference:
        - [You et al., 2021](https://arxiv.org/abs/2110.04065)
        - [Tomar et al., 2024](https://arxiv.org/abs/2401.08328)
    """
    if method not in METHODS:
        raise ValueError(
            f"`method` must be one of {sorted(METHODS)}. Received: "
            f"method={method!r}"
        )
    replaced = []

    def put(layer):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer
        if is_tuned(layer):
            raise ValueError(
                f"Layer '{layer.name}' is in tune mode: the convolution before "
                "it normalizes. Undo that first, "
                "`keras_efficient.utils.to_tune_mode(model, False)`."
            )
        if method == "unmix" and layer.input_spec.ndim < 3:
            return layer
        replaced.append(layer)
        return METHODS[method].from_batch_normalization(layer, **settings)

    adapted = keras.models.clone_model(
        model, call_function=None, clone_function=put, recursive=True
    )
    if not replaced:
        raise ValueError(
            f"Model '{model.name}' has no BatchNormalization that the method "
            f"{method!r} could replace."
        )
    return adapted
