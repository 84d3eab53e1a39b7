"""One network of `existing_peaks`: its peak, and what was predicted."""

import json
import sys

import keras
import numpy as np
from keras import layers

import keras_efficient
from keras_efficient.conversion.arguments import as_batch
from keras_efficient.utils.measured_step import Change
from keras_efficient.utils.step_measurement import measure_step

RNG = np.random.default_rng(0)
SIZES = {"vocabulary_size": 64, "num_layers": 12}
HEADS = {"num_heads": 4, "hidden_dim": 128, "intermediate_dim": 256}
QUERIES = {
    "num_query_heads": 4,
    "num_key_value_heads": 4,
    "hidden_dim": 128,
    "intermediate_dim": 256,
}
LENGTH = {"max_sequence_length": 128}
LANGUAGE = {
    "GPT-2": ("GPT2", {**SIZES, **HEADS, **LENGTH}),
    "Llama": ("Llama", {**SIZES, **QUERIES}),
    "Gemma": ("Gemma", {**SIZES, **QUERIES, "head_dim": 32}),
    "BERT": ("Bert", {**SIZES, **HEADS, **LENGTH}),
    "T5": ("T5", {**SIZES, **HEADS}),
}


def convolution(x, width):
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def residual():
    inputs = keras.Input((64, 64, 3))
    x = convolution(inputs, 16)
    for _ in range(12):
        x = layers.Add()([x, convolution(convolution(x, 16), 16)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, "softmax")(x))


def u_net():
    inputs = keras.Input((64, 64, 3))
    x, skips = inputs, []
    for width in (16, 32, 64):
        x = convolution(convolution(x, width), width)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = convolution(convolution(x, 128), 128)
    for skip in reversed(skips):
        x = layers.Concatenate()([layers.UpSampling2D()(x), skip])
        x = convolution(convolution(x, skip.shape[-1]), skip.shape[-1])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(10, 1)(x))
    return keras.Model(inputs, layers.Softmax()(x))


def vit():
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(64, 64, 3),
        patch_size=8,
        num_layers=12,
        num_heads=4,
        hidden_dim=128,
        mlp_dim=256,
    )
    return keras_hub.models.ViTImageClassifier(backbone, num_classes=10)


def make(network):
    """Return the model and a batch."""
    if network in LANGUAGE:
        import keras_hub

        name, arguments = LANGUAGE[network]
        model = getattr(keras_hub.models, f"{name}Backbone")(**arguments)
        tokens = RNG.integers(0, 64, (16, 128)).astype("int32")
        values = {
            "token_ids": tokens,
            "padding_mask": np.ones_like(tokens),
            "segment_ids": np.zeros_like(tokens),
        }
        return model, {
            key: values[key.removeprefix("encoder_").removeprefix("decoder_")]
            for key in model.input
        }
    images = RNG.normal(size=(32, 64, 64, 3)).astype("float32")
    own = {"residual CNN": residual, "U-Net": u_net, "ViT": vit}
    if network in own:
        return own[network](), images
    build = getattr(keras.applications, network)
    return build(weights=None, input_shape=(64, 64, 3), classes=10), images


def main(network):
    keras.utils.set_random_seed(1)
    model, x = make(network)
    outputs = keras.tree.map_structure(lambda y: "mse", model.output)
    model.compile(keras.optimizers.SGD(0.001), outputs, metrics=[])
    y = keras.tree.map_structure(
        lambda y: np.zeros_like(y), model.predict_on_batch(x)
    )
    step = measure_step(model, as_batch(model, x), allow=("recompute",))
    plain = measure(model, x, y, step, Change())
    keras_efficient.recompute(model)
    ours = measure(model, x, y, step, Change(recompute="all"))
    print(json.dumps([plain, ours]))


def measure(model, x, y, step, change):
    """Return bytes kept, the peak of a step, and what is predicted of it."""

    def steps():
        for _ in range(2):
            model.train_on_batch(x, y)

    steps()
    if keras.config.backend() == "torch":
        model.zero_grad()  # else gradients of the last step are not new
    peak = keras_efficient.utils.peak_bytes(steps)
    held = step.fixed["as it is"].parameters + step.batch
    kept = None
    if keras.config.backend() != "jax":  # there it has the working memory
        kept = keras_efficient.utils.saved_activation_bytes(model, x)
    return kept, peak, step.peak(change) - held


if __name__ == "__main__":
    main(sys.argv[1])
