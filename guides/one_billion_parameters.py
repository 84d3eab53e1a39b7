"""
Title: A billion parameters in six gigabytes
Author: The keras_efficient authors
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Every weight of a 1B language model, trained on two cores.
Accelerator: None
"""

"""
## What this guide does

It trains all weights of a language model that does not fit: with Adam and
float32 a billion parameters take 16 bytes each before the first activation,
16 GB. Here they take 5. The process is held by the operating system: a
megabyte beyond the limit is an error.

```shell
KERAS_BACKEND=torch python guides/one_billion_parameters.py --size 1B
KERAS_BACKEND=torch python guides/one_billion_parameters.py --size 124M
```

The first takes a quarter of an hour on two cores with AMX, the second some
minutes. PyTorch multiplies 16-bit matrices without vectors where there is no
AVX-512, 65 times as slowly as float32: take JAX there. `KERAS_BACKEND` may be
`jax`, `tensorflow` or `torch`. It has to be set before Keras is imported for
the first time. The limit and the peaks are asked of Linux.
"""

import argparse
import json
import os
import pydoc_data.topics
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ["KERAS_BACKEND"] == "jax":
    # On a CPU, XLA widens 16-bit weights for a product, and does what waits for
    # nothing first: all of them would be float32 before the first product.
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    )

import keras
import keras_hub
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_efficient

"""
## Three models

GPT-2 in two of its sizes, and Gemma 3 at the shape of its smallest published
model. Weights are drawn at random, so that nothing is downloaded; `--preset`
takes published ones.
"""

GPT2 = {"vocabulary_size": 50257, "max_sequence_length": 1024}
GEMMA3 = {
    "vocabulary_size": 262144,
    "image_size": None,
    "num_query_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "use_sliding_window_attention": True,
    "sliding_window_size": 512,
}
SIZES = {
    "3M": {
        **{**GEMMA3, "vocabulary_size": 2000, "head_dim": 16},
        **{"num_layers": 4, "hidden_dim": 64, "intermediate_dim": 256},
    },
    "124M": {
        **{**GPT2, "num_layers": 12, "num_heads": 12},
        **{"hidden_dim": 768, "intermediate_dim": 3072},
    },
    "350M": {
        **{**GPT2, "num_layers": 24, "num_heads": 16},
        **{"hidden_dim": 1024, "intermediate_dim": 4096},
    },
    "1B": {
        **{**GEMMA3, "num_layers": 26},
        **{"hidden_dim": 1152, "intermediate_dim": 6912},
    },
}


def build(options):
    models = keras_hub.models
    is_gpt2 = "max_sequence_length" in SIZES[options.size]
    task = models.GPT2CausalLM if is_gpt2 else models.Gemma3CausalLM
    if options.preset:
        return task.from_preset(options.preset, preprocessor=None)
    shape = dict(SIZES[options.size])
    shape["num_layers"] = max(2, round(shape["num_layers"] * options.part))
    if is_gpt2:
        backbone = models.GPT2Backbone(**shape)
    else:
        backbone = models.Gemma3Backbone(**shape)
    return task(preprocessor=None, backbone=backbone)


"""
## Six lines

`efficient` differs from plain Keras by six lines, of which JAX and TensorFlow
need four, and JAX `XLA_FLAGS` above:

1. weights and computation in bfloat16;
2. of each block only the input is kept (`recompute`);
3. logits of 262,144 words are never whole (`chunk_loss`);
4. each gradient is used and dropped as soon as it is complete
   (`release_gradients`; XLA does so by itself);
5. moments take one byte each (`Adam8bit`), and a third byte keeps what a
   16-bit weight cannot hold of a step;
6. files are written and read as 16 bits (`save_in_16_bits`, on PyTorch).

So a parameter takes 2 + 1 + 2.1 bytes. `plain` is Keras with Adam in float32,
`plain 16-bit` the same in bfloat16: it is here for its time only, since Adam
at 16 bits rounds its own decay to 1 and does not train.
"""


def compiled(version, options):
    keras.utils.set_random_seed(0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(options.learning_rate)
    if version != "plain":
        keras.config.set_dtype_policy("bfloat16")
    model = build(options)
    if version == "efficient":
        keras_efficient.recompute(model)
        keras_efficient.chunk_loss(model)
        keras_efficient.release_gradients(model)
        keras_efficient.save_in_16_bits(model)
        optimizer = keras_efficient.optimizers.Adam8bit(options.learning_rate)
    model.compile(
        optimizer,
        loss,
        weighted_metrics=[],  # `None` would leave KerasHub's own: an accuracy
        jit_compile=keras.config.backend() != "torch",
    )
    return model


"""
## Text

Python's own manual, word by word. Words are numbered by how often they occur.
All steps see the same batch: it can be learnt by heart, if the weights move.
"""


def batch(options):
    topics = pydoc_data.topics.topics
    text = " ".join(topics[name] for name in sorted(topics))
    words = re.findall(r"\w+|[^\w\s]", text)
    vocabulary = SIZES[options.size]["vocabulary_size"]
    numbers = {
        word: min(i + 1, vocabulary - 1)
        for i, (word, _) in enumerate(Counter(words).most_common())
    }
    count = options.batch_size * options.length + 1
    tokens = np.array([numbers[word] for word in words[:count]], "int32")
    x, y = (
        part.reshape(options.batch_size, options.length)
        for part in (tokens[:-1], tokens[1:])
    )
    return {"token_ids": x, "padding_mask": np.ones_like(x)}, y


"""
## One version, in a process of its own, under a limit

The limit is on the memory of its own that the process may ask for beyond what
its imports take (`RLIMIT_DATA`), so that every allocation counts: weights while
they are drawn, compilers, the largest temporary of a step.
"""


def status(name):
    """Return an entry of the kernel's record of this process, in bytes."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024


def hold(limit):
    """Let this process ask for so many GiB more; 0 is for any number."""
    if limit:
        size = status("VmData") + int(limit * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


class Seconds(keras.callbacks.Callback):
    """Write down the seconds of each epoch, which is one step here."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(time.perf_counter() - self.start)


def measure(version, options):
    imports = status("VmHWM")
    hold(options.limit)
    model = compiled(version, options)
    before = samples(model)
    x, y = batch(options)
    seconds = Seconds()
    history = model.fit(
        x,
        y,
        batch_size=len(y),
        epochs=options.steps,
        callbacks=[seconds],
        verbose=0,
    )
    peak = status("VmHWM") - imports
    moved = [a != b for a, b in zip(before, samples(model))]
    variables = model.trainable_variables
    return {
        "parameters": sum(
            int(np.prod(v.shape)) for v, m in zip(variables, moved) if m
        ),
        "peak": peak,
        "parts": held(model),
        "losses": history.history["loss"],
        "seconds": seconds.found,
        **(in_a_file(model, imports) if options.files else {}),
    }


def samples(model):
    """Return the bytes of the first rows of each variable."""
    return [
        keras.ops.convert_to_numpy(v.value[:4]).tobytes()
        for v in model.trainable_variables
    ]


"""
## Files

A file must fit beside all that training holds, too. Keras on PyTorch writes and
reads 16-bit weights by way of float32; `save_in_16_bits` does without.
"""


def in_a_file(model, imports):
    """Save and load the weights; return the peak of both."""
    before = samples(model)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.weights.h5")
        start = time.perf_counter()
        model.save_weights(path)
        saved = time.perf_counter()
        for v in model.trainable_variables:
            v.assign(keras.ops.zeros(v.shape, v.dtype))
        model.load_weights(path)
        loaded = time.perf_counter()
    return {
        "files are whole": before == samples(model),
        "peak with files": status("VmHWM") - imports,
        "seconds of files": [saved - start, loaded - saved],
    }


"""
## What it is made of

`memory_plan` tells the peak of a step before it is made, by what takes it:
weights, what rounding them to 16 bits leaves (`correction`), the optimizer's
moments, gradients, activations, logits with their loss. It counts tensors. What
libraries and compiled code take besides is asked of a model of 3M, in which
tensors are next to nothing. After the run, what stays between steps is counted.
"""

PARTS = ("weights", "correction", "optimizer", "gradients", "activations")
PARTS += ("logits", "rest")


def plan(version, options):
    """Return the bytes of each part at the peak, before the run."""
    changed = {"size": "3M", "steps": 1, "limit": 0.0, "files": False}
    small = argparse.Namespace(**{**vars(options), **changed})
    beside = measure(version, small)["peak"]
    hold(2 * options.limit)  # `memory_plan` tries an update on copies
    of_small, parts = (
        keras_efficient.utils.memory_plan(
            compiled(version, of_size),
            batch(of_size)[0],
            budget=1000,
            allow=(),
            verbose=0,
        ).parts_as_it_is
        for of_size in (small, options)
    )
    parts["rest"] += beside - sum(of_small.values())
    return parts


def held(model):
    """Return the bytes that a model and its optimizer keep between steps."""
    found = {"weights": 0, "correction": 0, "optimizer": 0}
    for v in model.weights:
        found["weights"] += size(v)
    for v in model.optimizer.variables:
        is_rest = v.name.endswith("_correction")
        found["correction" if is_rest else "optimizer"] += size(v)
    return found


def size(variable):
    bits = int(re.search(r"\d+", variable.dtype).group())
    return int(np.prod(variable.shape)) * bits // 8


def in_a_process(version, options, part, limit=0.0, *words):
    """Return what a version took, or the last line of its error."""
    passed = ("size", "length", "batch_size", "learning_rate", "steps")
    arguments = [
        f"--{name.replace('_', '-')}={getattr(options, name)}"
        for name in passed
    ]
    if options.preset:
        arguments.append(f"--preset={options.preset}")
    names = {"KERAS_BACKEND": keras.config.backend()}
    if limit:
        # What is freed goes back to the system at once. It takes time.
        names["MALLOC_MMAP_THRESHOLD_"] = "131072"
        names["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] = "1"
    done = subprocess.run(
        [
            *(sys.executable, __file__, *arguments),
            *(f"--version={version}", f"--part={part}", f"--limit={limit}"),
            *words,
        ],
        env={**os.environ, **names},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{done.returncode}"]
        return {"error": lines[-1][:100]}
    return json.loads(done.stdout.splitlines()[-1])


"""
## What came out

1. The whole model, efficient, within the limit, with files; and plain, within
   the same. Beside each what was predicted.
2. The loss of each step. Beside it that of a tenth of the depth, in float32
   with Adam: the efficient one should fall as that does.
3. Seconds a step of a quarter of the depth, which plain Keras can hold in
   bfloat16.

Where plain Keras fits into the limit, the first is all.
"""

MODELS = (
    ("efficient", 1.0, True),
    ("plain", 1.0, True),
    ("plain", 0.1, False),
    ("efficient", 0.25, False),
    ("plain 16-bit", 0.25, False),
)


def show(results, options):
    table = Table(title=f"{options.size} on {keras.config.backend()}")
    for name in ("model", "trained", "peak MB", "s a step", "loss"):
        table.add_column(name)
    for (version, part, limited), found in results.items():
        name = f"{version}, {part:.0%} of the depth"
        name += f", at most {options.limit:g} GiB" if limited else ""
        if "error" in found:
            table.add_row(name, "", "does not fit", "", found["error"])
            continue
        table.add_row(
            name,
            f"{found['parameters']:,}",
            f"{found['peak'] / 1e6:,.0f}",
            f"{sorted(found['seconds'])[len(found['seconds']) // 2]:.1f}",
            " ".join(f"{loss:.2f}" for loss in found["losses"]),
        )
    Console().print(table)


def show_parts(predicted, results):
    """Print the parts of each peak, predicted and measured; return them."""
    table, bars = Table(title="MB at the peak"), {}
    for (version, part, _), found in results.items():
        expected = predicted.get(version, {"error": ""})
        if part < 1 or "error" in {**found, **expected}:
            continue
        counted = dict(found["parts"])
        counted["rest"] = found["peak"] - sum(counted.values())
        bars[f"{version}, predicted"] = expected
        bars[f"{version}, measured"] = counted
    for name in ("", *bars):
        table.add_column(name, justify="right")
    for part in (*PARTS, "peak"):
        sizes = [
            x.get(part, part == "peak" and sum(x.values()))
            for x in bars.values()
        ]
        table.add_row(part, *(f"{n / 1e6:,.0f}" if n else "" for n in sizes))
    Console().print(table)
    return bars


def draw(stacks, results, path):
    try:
        import matplotlib
    except ImportError:
        return
    if "MPLBACKEND" not in os.environ:  # a notebook sets it
        matplotlib.use("Agg")
    from matplotlib import pyplot

    fits = {k: v for k, v in results.items() if "error" not in v}
    figure, (bars, lines) = pyplot.subplots(
        1, 2, figsize=(9, 3), layout="constrained"
    )
    left = np.zeros(len(stacks))
    for part in PARTS:
        sizes = np.array([x.get(part, 0) / 1e9 for x in stacks.values()])
        bars.barh(list(stacks), sizes, left=left, label=part)
        left += sizes
    bars.set_xlabel("GB at the peak")
    bars.invert_yaxis()
    bars.legend(
        fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.2)
    )
    for (version, part, _), found in fits.items():
        steps = range(1, len(found["losses"]) + 1)
        label = f"{version}, {part:.0%} of the depth"
        lines.plot(steps, found["losses"], label=label)
    lines.xaxis.get_major_locator().set_params(integer=True)
    lines.set_xlabel("step, always on the same batch")
    lines.set_ylabel("loss")
    lines.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    print(f"Wrote {path}")


"""
## Run it
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="1B")
    parser.add_argument("--preset", help="published weights, by KerasHub")
    parser.add_argument("--length", type=int, default=512, help="tokens")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--limit", type=float, default=6.0, help="GiB")
    parser.add_argument("--picture", default="one_billion_parameters.png")
    parser.add_argument("--version", help="only this one, in this process")
    parser.add_argument("--part", type=float, default=1.0, help="of the depth")
    parser.add_argument("--files", action="store_true", help="save and load")
    parser.add_argument("--plan", action="store_true", help="do not train")
    options = parser.parse_args()
    if options.version:
        do = plan if options.plan else measure
        print(json.dumps(do(options.version, options)))
        return
    predicted = {
        version: in_a_process(version, options, 1.0, options.limit, "--plan")
        for version in ("efficient", "plain")
    }
    print(f"predicted: {predicted}", flush=True)
    results = {}
    for version, part, limited in MODELS:
        if not limited and "error" not in results["plain", 1.0, True]:
            break
        limit = options.limit if limited else 0.0
        files = ["--files"] if version == "efficient" and limited else []
        found = in_a_process(version, options, part, limit, *files)
        print(f"{version}, {part:.0%} of the depth: {found}", flush=True)
        results[version, part, limited] = found
    show(results, options)
    draw(show_parts(predicted, results), results, options.picture)


if __name__ == "__main__":
    main()
