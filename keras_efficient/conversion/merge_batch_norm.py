import keras

from keras_efficient.conversion.to_tune_mode import convolution_pairs
from keras_efficient.layers.convolutional.tuned_conv import merged_weights


def merge_batch_norm(model):
    """Return a model for inference, without normalizations after convolutions.

    Each convolution takes in the batch normalization that alone reads its
    output:

    ```
    c = gamma / sqrt(moving_variance + epsilon)
    w <- w c        b <- beta + c (b - moving_mean)
    ```

    It gets a bias if it had none; an `Identity` stands where the
    normalization was. Outputs are those in inference, to rounding; work and
    memory of the normalizations are saved. It is not for training: gradients
    of merged weights have another scale
    (`keras_efficient.utils.to_tune_mode` is for that).

    Args:
        model: A built functional or sequential `keras.Model`; also of such
            models. It stays as it is, and may be in tune mode.

    Returns:
        A new `keras.Model`. All other layers are those of `model` itself.

    Raises:
        TypeError: `model` is not a `keras.Model`.
        ValueError: it has no such pair.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
    ])
    small = keras_efficient.utils.merge_batch_norm(model)
    ```

    Reference:
        - [You et al., 2023](https://arxiv.org/abs/2305.11624), "deploy"
    """
    pairs = convolution_pairs(model)
    norms = {id(bn) for _, bn in pairs}
    of_conv = {id(conv): bn for conv, bn in pairs}
    merged = []

    def put(layer):
        if id(layer) in norms:
            # By its name: Keras could not save a policy.
            dtype = layer.dtype_policy.name
            return keras.layers.Identity(name=layer.name, dtype=dtype)
        if id(layer) not in of_conv:
            return layer
        conv = type(layer).from_config({**layer.get_config(), "use_bias": True})
        merged.append((conv, layer))
        return conv

    # Keras has no such argument for a Sequential model.
    is_list = isinstance(model, keras.Sequential)
    new = keras.models.clone_model(
        model,
        call_function=None if is_list else _call,
        clone_function=put,
        recursive=True,
    )
    for conv, layer in merged:
        conv.set_weights(
            [
                keras.ops.convert_to_numpy(x)
                for x in merged_weights(layer, of_conv[id(layer)])
            ]
        )
    return new


def _call(layer, *args, **kwargs):
    """Call a layer of the new model; an `Identity` takes no mask."""
    if isinstance(layer, keras.layers.Identity):
        kwargs = {}
    return layer(*args, **kwargs)
