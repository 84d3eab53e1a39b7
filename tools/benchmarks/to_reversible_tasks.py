"""Small backbones of `to_reversible`, and what they learn."""

import pydoc_data.topics

import keras
import keras_hub
import numpy as np
from scipy.special import log_softmax

LENGTH, SIZE, VOCABULARY, WIDTH = 32, 16, 128, 48
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def characters():
    """Return the texts before fine-tuning, for it, and held out."""
    topics = pydoc_data.topics.topics
    halves = np.array_split(sorted(topics), 2)
    first, second = ("\n\n".join(topics[n] for n in half) for half in halves)
    border = len(second) * 9 // 10
    return [
        np.minimum(np.frombuffer(text.encode(), "uint8"), 127).astype("int32")
        for text in (first, second[:border], second[border:])
    ]


def digits():
    """Return images and classes: as they are, upside down, held out."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).repeat(3, -1).astype("float32") / 8 - 1
    first, second = images[:1400], images[:1400, ::-1]
    held_out = images[1400:, ::-1]
    return (
        (first, classes[:1400]),
        (second, classes[:1400]),
        (held_out, classes[1400:]),
    )


class Task:
    """A backbone, its head, and texts or images for it.

    Attributes:
        backbone: Of KerasHub.
        model: The backbone with its head.
        before, tuning: What it is to learn first, and then.
        few: A batch of inputs, to compare gradients on.
    """

    def __init__(self, family, depth, seed):
        keras.utils.set_random_seed(seed)
        self.family, self.seed = family, seed
        hub = keras_hub.models
        sizes = {
            "vocabulary_size": VOCABULARY,
            "num_layers": depth,
            "hidden_dim": WIDTH,
            "intermediate_dim": 4 * WIDTH,
        }
        own = {"num_heads": 4, "dropout": 0.0, "max_sequence_length": LENGTH}
        self.backbone = {
            "GPT-2": lambda: hub.GPT2Backbone(**sizes, **own),
            "BERT": lambda: hub.BertBackbone(**sizes, **own),
            "Llama": lambda: hub.LlamaBackbone(
                num_query_heads=4, num_key_value_heads=2, **sizes
            ),
            "ViT": lambda: hub.ViTBackbone(
                (8, 8, 3), 2, depth, 4, WIDTH, 4 * WIDTH
            ),
        }[family]()
        self.head = keras.layers.Dense(10 if family == "ViT" else VOCABULARY)
        self.model = self.with_head(self.backbone)
        sources = digits() if family == "ViT" else characters()
        self.before, self.tuning, held_out = sources
        # The same ones for all seeds.
        self.held_out = self.batches(held_out, 16, np.random.default_rng(1))
        self.few = keras.tree.map_structure(lambda x: x[:SIZE], self.held_out)[
            0
        ]

    def with_head(self, backbone):
        hidden = backbone(backbone.input)
        if isinstance(hidden, dict):
            hidden = hidden["sequence_output"]
        if self.family == "ViT":
            hidden = hidden[:, 0]
        model = keras.Model(backbone.input, self.head(hidden))
        model.compile("adam", LOSS, weighted_metrics=[], jit_compile=True)
        return model

    def batches(self, source, count, rng):
        """Return inputs, targets and weights of `count` batches."""
        if self.family == "ViT":
            rows = rng.integers(len(source[0]), size=count * SIZE)
            return source[0][rows], source[1][rows], np.ones(len(rows))
        view = np.lib.stride_tricks.sliding_window_view(source, LENGTH + 1)
        texts = view[rng.integers(len(view), size=count * SIZE)]
        tokens, targets = texts[:, :-1], texts[:, 1:]
        weights = np.ones(tokens.shape)
        if self.family == "BERT":
            weights = (rng.random(tokens.shape) < 0.15).astype("float32")
            targets, tokens = tokens, np.where(weights, 0, tokens)
        inputs = {
            "token_ids": tokens,
            "padding_mask": np.ones_like(tokens),
            "segment_ids": np.zeros_like(tokens),
        }
        return (
            {name: inputs[name] for name in self.backbone.input},
            targets,
            weights,
        )

    def train(self, model, source, steps, rate, callbacks=()):
        rng = np.random.default_rng(self.seed)
        inputs, targets, weights = self.batches(source, steps, rng)
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        model.optimizer.learning_rate = rate
        model.fit(
            inputs,
            targets,
            sample_weight=weights,
            batch_size=SIZE,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )

    def predict(self, model):
        """Return log-probabilities of the held-out places."""
        inputs, _, weights = self.held_out
        logits = model.predict(inputs, batch_size=SIZE, verbose=0)
        return log_softmax(logits[weights > 0].astype("float64"), -1)

    def loss(self, logs):
        """Return nats of the held-out places."""
        _, targets, weights = self.held_out
        targets = targets[weights > 0]
        return -np.mean(logs[np.arange(len(logs)), targets])
