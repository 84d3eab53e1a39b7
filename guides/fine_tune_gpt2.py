"""
Title: Fine-tune GPT-2 in less memory
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: A KerasHub GPT-2 made reversible, with MicroAdam.
Accelerator: None
"""

"""
## What this guide does

It fine-tunes a GPT-2 of KerasHub twice from the same weights: plainly, with
Adam, and after `to_reversible`, with MicroAdam. It prints what a training
step takes, and how well either predicts text that it has not seen.

```shell
KERAS_BACKEND=jax python guides/fine_tune_gpt2.py
KERAS_BACKEND=jax python guides/fine_tune_gpt2.py --preset gpt2_base_en
```

The first command downloads nothing: it makes a small GPT-2 that reads bytes,
and trains it on one part of Python's help texts before it fine-tunes it on
another. The second command downloads the weights and the tokenizer of a
preset instead. KerasHub is the extra `nlp`.

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time.
"""

import argparse
import os
import pydoc_data.topics

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_efficient
from keras_efficient.models import hub

"""
## The text

The help texts of the language reference, `help("while")` and so on, come with
Python. Those of the first half of the alphabet are what the small GPT-2 has
read before, those of the second half what it is to be fine-tuned to; of
these, the last tenth is held out. A token is a byte, or what the tokenizer
of the preset makes of the text.
"""


def texts():
    """Return the texts before fine-tuning, for it, and held out."""
    topics = pydoc_data.topics.topics
    names = sorted(topics)
    first, second = np.array_split(names, 2)
    before, text = ("\n\n".join(topics[n] for n in h) for h in (first, second))
    border = len(text) * 9 // 10
    return before, text[:border], text[border:]


def bytes_of(text):
    return np.frombuffer(text.encode(), "uint8").astype("int32")


def windows(tokens, length, step):
    """Return inputs and targets of `length` tokens, each `step` further."""
    view = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::step]
    token_ids, targets = view[:, :-1], view[:, 1:]
    mask = np.ones_like(token_ids)
    return {"token_ids": token_ids, "padding_mask": mask}, targets


"""
## The network

A backbone takes tokens to hidden states; a task of KerasHub adds the last
layer. The small backbone has the form of GPT-2 with 256 tokens.
"""


def load_backbone(options):
    """Return a backbone and its function from a text to tokens."""
    if options.preset:
        tokenizer = keras_hub.tokenizers.GPT2Tokenizer.from_preset(
            options.preset
        )
        backbone = keras_hub.models.GPT2Backbone.from_preset(options.preset)

        def tokens_of(text):
            tokens = keras.ops.convert_to_numpy(tokenizer(text))
            return tokens.astype("int32")

        return backbone, tokens_of
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=256,
        num_layers=options.depth,
        num_heads=4,
        hidden_dim=options.width,
        intermediate_dim=4 * options.width,
        dropout=0.1,
        max_sequence_length=options.length,
    )
    return backbone, bytes_of


"""
## Made reversible

`to_reversible` keeps the weights and adds a second stream to the layers, a
velocity, which makes them invertible. That is a nearby function, not the same
one: the loss right after it tells how near. The task around it is
`hub.ReversibleCausalLM`.
"""


def compiled(task, optimizer):
    task.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    return task


def plain(backbone, learning_rate):
    task = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    return compiled(task, keras.optimizers.Adam(learning_rate))


def reversible(backbone, learning_rate):
    task = hub.ReversibleCausalLM(hub.to_reversible(backbone))
    optimizer = keras_efficient.optimizers.MicroAdam(learning_rate)
    return compiled(task, optimizer)


"""
## Training

Windows are drawn at random, the same ones in both runs.
"""


def train(model, tokens, steps, options):
    inputs, targets = windows(tokens, options.length, 1)
    rng = np.random.default_rng(0)
    rows = rng.integers(len(targets), size=steps * options.batch_size)
    model.fit(
        {name: x[rows] for name, x in inputs.items()},
        targets[rows],
        batch_size=options.batch_size,
        shuffle=False,
        verbose=2,
    )


def evaluate(model, tokens, options):
    """Return nats a token; held-out windows do not overlap."""
    inputs, targets = windows(tokens, options.length, options.length)
    return model.evaluate(
        inputs, targets, batch_size=options.batch_size, verbose=0
    )


"""
## One run

Both start from the same weights, and both share the variables of the
backbone, which are set back before a run. The report of the plain run is
printed: its second table has what each lever would save.
"""


def fine_tune(make, backbone, weights, data, options, verbose):
    keras.utils.set_random_seed(0)
    backbone.set_weights(weights)
    tokens, held_out = data
    model = make(backbone, options.learning_rate)
    print(f"\n{make.__name__}: {model.count_params():,} parameters")
    before = evaluate(model, held_out, options)
    train(model, tokens, options.steps, options)
    inputs, _ = windows(
        tokens[: options.batch_size + options.length], options.length, 1
    )
    report = keras_efficient.utils.memory_report(
        model, inputs, budget=options.budget, verbose=verbose
    )
    usage = report.usage["as it is"]
    return {
        "before": before,
        "after": evaluate(model, held_out, options),
        "state": keras_efficient.utils.optimizer_state_bytes(model.optimizer),
        "kept": usage.activations,
        "peak": usage.peak,
    }


"""
## What came out

The peak is that of the report: parameters, gradients, optimizer state,
activations and working memory of a step.
"""


def show(results):
    table = Table(title=keras.config.backend())
    for column in ("", "plain, Adam", "reversible, MicroAdam"):
        table.add_column(column)
    for label, key, form in (
        ("nats a token, before", "before", "{:.3f}"),
        ("nats a token, fine-tuned", "after", "{:.3f}"),
        ("bytes of optimizer state", "state", "{:,}"),
        ("bytes kept for the backward pass", "kept", "{:,}"),
        ("bytes at the peak of a step", "peak", "{:,}"),
    ):
        table.add_row(label, *[form.format(r[key]) for r in results])
    Console().print(table)


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", help="of a GPT-2; is downloaded")
    help = "before fine-tuning, without a preset"
    parser.add_argument("--first-steps", type=int, default=200, help=help)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--depth", type=int, default=6, help="layers")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=64, help="tokens")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--budget", type=float, default=1.0, help="GiB")
    options = parser.parse_args()
    if options.learning_rate is None:
        options.learning_rate = 2e-5 if options.preset else 1e-3

    keras.utils.set_random_seed(0)
    backbone, tokens_of = load_backbone(options)
    first, *data = map(tokens_of, texts())
    if not options.preset:
        train(plain(backbone, 3e-3), first, options.first_steps, options)
    weights = backbone.get_weights()
    results = [
        fine_tune(make, backbone, weights, data, options, make is plain)
        for make in (plain, reversible)
    ]
    show(results)


if __name__ == "__main__":
    main()
