"""Make networks that exist recompute: is a step the same, what is kept?

Networks of `keras.applications` and KerasHub, made small, with random weights
and inputs, on the backend of `KERAS_BACKEND`. Each takes one step of gradient
descent plainly and after `keras_efficient.recompute`, from the same weights
and seeds.

"kept" are bytes for the backward pass, at a batch of 4
(`utils.saved_activation_bytes`; on JAX with the working memory of a step).
"difference" is the largest of all variables after the step, over the largest
change of a variable in it. Networks of convolutions run in float64: with batch
statistics of few examples, float32 amplifies what a compiler rounds elsewhere.
"""

import os

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

NETWORKS = (
    *("ResNet50", "ResNet50V2", "EfficientNetV2B0", "MobileNetV3Small"),
    *("DenseNet121", "ConvNeXtTiny", "GPT-2", "GPT-2, LoRA", "Llama"),
    *("Llama, LoRA", "Llama, bfloat16", "Llama, int8 and LoRA", "Gemma"),
    *("Gemma 2", "Gemma 3", "Qwen", "Mistral", "BERT", "RoBERTa", "T5"),
    *("ViT", "Stable Diffusion 3"),
)


def add_arguments(parser):
    help = "may be repeated; defaults to all"
    parser.add_argument(
        "--network", choices=NETWORKS, action="append", help=help
    )


def main(options):
    if os.environ.get("KERAS_BACKEND") == "jax":
        os.environ["JAX_ENABLE_X64"] = "1"
    from benchmarks.existing_networks import compare

    table = Table(box=SIMPLE)
    for title in ("", "difference", "kept", "kept, recompute", "ratio"):
        table.add_column(title, justify="right" if title else "left")
    console = Console()
    for network in options.network or NETWORKS:
        try:
            row = compare(network)
        except Exception as error:
            row = (f"{type(error).__name__}: {error}"[:400],)
        else:
            difference, plain, ours = row
            row = (
                f"{difference:.0e}",
                f"{plain / 1e6:.2f}",
                f"{ours / 1e6:.2f}",
                f"{plain / max(ours, 1):.1f}",
            )
        console.print(network, *row)
        table.add_row(network, *row)
    console.print(table)
