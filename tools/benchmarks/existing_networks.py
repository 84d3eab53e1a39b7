"""The networks of `existing`, and the comparison of one of them."""

import gc

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_efficient

BATCH = 4
TRANSFORMER = {"vocabulary_size": 50, "num_layers": 4}
HEADS = {"num_heads": 4, "hidden_dim": 32, "intermediate_dim": 64}
QUERIES = {
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 64,
}
LENGTH = {"max_sequence_length": 32}
GEMMA = {**TRANSFORMER, **QUERIES, "head_dim": 8}
GEMMA_2 = {
    "query_head_dim_normalize": True,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "final_logit_soft_cap": 30,
    "attention_logit_soft_cap": 50,
    "sliding_window_size": 8,
    "use_sliding_window_attention": True,
}
GEMMA_3 = {**GEMMA, "image_size": 16, "vision_encoder": None}

LANGUAGE = {  # name, and arguments of its backbone
    "GPT-2": ("GPT2", {**TRANSFORMER, **HEADS, **LENGTH}),
    "Llama": ("Llama", {**TRANSFORMER, **QUERIES, "dropout": 0.1}),
    "Gemma": ("Gemma", GEMMA),
    "Gemma 2": ("Gemma", {**GEMMA, **GEMMA_2}),
    "Gemma 3": ("Gemma3", GEMMA_3),
    "Qwen": ("Qwen", {**TRANSFORMER, **QUERIES, "dropout": 0.1}),
    "Mistral": ("Mistral", {**TRANSFORMER, **QUERIES, "dropout": 0.1}),
    "BERT": ("Bert", {**TRANSFORMER, **HEADS, **LENGTH}),
    "RoBERTa": ("Roberta", {**TRANSFORMER, **HEADS, **LENGTH}),
    "T5": ("T5", {**TRANSFORMER, **HEADS}),
}


def random():
    return np.random.default_rng(0)


def tokens(backbone):
    ids = random().integers(3, 50, (BATCH, 16)).astype("int32")
    mask = np.ones((BATCH, 16), "int32")
    mask[0, -4:] = 0
    values = {"token_ids": ids, "padding_mask": mask}
    values["segment_ids"] = np.zeros_like(ids)
    return {
        name: values[name.removeprefix("encoder_").removeprefix("decoder_")]
        for name in backbone.input
    }


def language(network):
    """A task, or for want of one a backbone, and its inputs."""
    name, arguments = LANGUAGE[network.partition(",")[0]]
    dtype = "mixed_bfloat16" if "bfloat16" in network else "float32"
    hub = keras_hub.models
    backbone = getattr(hub, f"{name}Backbone")(**arguments, dtype=dtype)
    if hasattr(hub, f"{name}CausalLM"):
        make = getattr(hub, f"{name}CausalLM")
        model = make(backbone=backbone, preprocessor=None)
    elif hasattr(hub, f"{name}TextClassifier"):
        make = getattr(hub, f"{name}TextClassifier")
        model = make(backbone, num_classes=3)
    else:
        model = backbone
    if "int8" in network:
        model.quantize("int8")
    if "LoRA" in network:
        backbone.enable_lora(4)
    return model, tokens(backbone)


def application(network):
    make = getattr(keras.applications, network)
    model = make(weights=None, input_shape=(64, 64, 3), classes=5)
    return model, random().normal(size=(BATCH, 64, 64, 3))


def vit():
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=4,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=64,
        dropout_rate=0.1,
    )
    model = keras_hub.models.ViTImageClassifier(backbone, num_classes=3)
    return model, random().normal(size=(BATCH, 32, 32, 3))


def mmdit():
    # KerasHub exports it as part of a whole pipeline only.
    from keras_hub.src.models.stable_diffusion_3.mmdit import MMDiT

    model = MMDiT(
        patch_size=2,
        hidden_dim=32,
        num_layers=4,
        num_heads=4,
        position_size=8,
        latent_shape=(8, 8, 4),
        context_shape=(6, 16),
        pooled_projection_shape=(12,),
    )
    shapes = {name: x.shape[1:] for name, x in model.input.items()}
    return model, {
        name: random().normal(size=(BATCH, *shape))
        for name, shape in shapes.items()
    }


def make(network):
    keras.utils.set_random_seed(1)
    if network.partition(",")[0] in LANGUAGE:
        return language(network)
    if network == "ViT":
        return vit()
    if network == "Stable Diffusion 3":
        return mmdit()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    return application(network)


def step(network, change):
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    model, x = make(network)
    rng = random()
    for variable in model.trainable_variables:  # many begin as zeros
        noise = 0.1 * rng.normal(size=variable.shape)
        variable.assign_add(noise.astype("float32"))
    change(model)
    outputs = model.output
    names = list(outputs) if isinstance(outputs, dict) else None

    def loss(y_true, y_pred):
        y = ops.reshape(ops.cast(y_pred, keras.config.floatx()), (BATCH, -1))
        weights = ops.cos(ops.arange(y.shape[1], dtype=y.dtype))
        return ops.mean(ops.square(y) + weights * y, axis=-1)

    y = np.zeros((BATCH, 1), keras.config.floatx())
    # After a step without momentum the variables show all gradients.
    model.compile(
        keras.optimizers.SGD(0.1),
        {name: loss for name in names} if names else loss,
    )
    before = [ops.convert_to_numpy(v) for v in model.variables]
    model.train_on_batch(x, {name: y for name in names} if names else y)
    after = [ops.convert_to_numpy(v) for v in model.variables]
    kept = keras_efficient.utils.saved_activation_bytes(
        model, keras.tree.map_structure(as_numbers, x)
    )
    return before, after, kept


def as_numbers(x):
    return x if x.dtype == "int32" else x.astype(keras.config.floatx())


def compare(network):
    """Return the difference, and bytes kept plainly and recomputed."""
    before, plain, kept = step(network, lambda model: None)
    _, ours, ours_kept = step(network, keras_efficient.recompute)
    gc.collect()

    def largest(a, b):
        return max(
            np.abs(x.astype("float64") - y).max()
            for x, y in zip(a, b, strict=True)
            # optimizer and seeds count as well
            if x.size
        )

    learned = [x for x in before if x.dtype != "uint32"]
    moved = [x for x in plain if x.dtype != "uint32"]
    return largest(plain, ours) / largest(learned, moved), kept, ours_kept
