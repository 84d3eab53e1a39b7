"""What small layers do on small tasks: digits, characters, Gaussians.

`KERAS_BACKEND=jax python tools/benchmark.py small_layers norms` prints a table
of mean and standard deviation over seeds. Tasks: `norms`, `shift`, `peri`,
`characters`, `linear_attention`, `replay`, `meta_blocks`, `binary`, `domains`,
`adapters`, `bottleneck`, `retrieval`, `random_features`, `pooling`,
`hourglass`, `settings`.
"""

import importlib

NORMALIZATION = ("norms", "shift", "peri", "characters", "linear_attention")
STREAMS = ("replay", "meta_blocks")
BINARY = ("binary", "domains")
ADAPTATION = (
    *("adapters", "bottleneck", "retrieval", "random_features", "pooling"),
    *("hourglass", "settings"),
)
MODULES = {
    **dict.fromkeys(NORMALIZATION, "normalization"),
    **dict.fromkeys(STREAMS, "streams"),
    **dict.fromkeys(BINARY, "binary"),
    **dict.fromkeys(ADAPTATION, "adaptation"),
}


def add_arguments(parser):
    parser.add_argument("task", choices=MODULES)
    parser.add_argument("--seeds", type=int, default=5)


def main(options):
    name = f"benchmarks.small_layers_{MODULES[options.task]}"
    module = importlib.import_module(name)
    for row in getattr(module, options.task)(options.seeds):
        print("|", " | ".join(map(str, row)), "|", flush=True)
