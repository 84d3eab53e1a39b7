"""Train a bigger Keras 3 model on the machine you have, on any backend.

Reversible layers and `layers.Recompute` take away the activations that grow
with depth, compressed optimizers such as `optimizers.MicroAdam` the state of 8
bytes a parameter, and `callbacks.AutoDrop` the runs that tune a learning rate.

Start with `utils.memory_report(model, batch)`, which tells where the memory
goes and what would save it; `guides/quickstart.py` trains with all of them.
"""

import functools as _functools
import types as _types

from keras_efficient import callbacks as callbacks
from keras_efficient import config as config
from keras_efficient import constraints as constraints
from keras_efficient import initializers as initializers
from keras_efficient import kernels as kernels
from keras_efficient import layers as layers
from keras_efficient import losses as losses
from keras_efficient import metrics as metrics
from keras_efficient import models as models
from keras_efficient import ops as ops
from keras_efficient import optimizers as optimizers
from keras_efficient import regularizers as regularizers
from keras_efficient import utils as utils
from keras_efficient.conversion import chunk_loss as chunk_loss
from keras_efficient.conversion import micro_batches as micro_batches
from keras_efficient.conversion import recompute as recompute
from keras_efficient.conversion import release_gradients as release_gradients
from keras_efficient.conversion import save_in_16_bits as save_in_16_bits
from keras_efficient.optimizers.names import register_names as _register_names
from keras_efficient.version import __version__ as __version__

__all__ = [
    "__version__",
    "callbacks",
    "chunk_loss",
    "config",
    "constraints",
    "initializers",
    "kernels",
    "layers",
    "losses",
    "metrics",
    "micro_batches",
    "models",
    "ops",
    "optimizers",
    "recompute",
    "regularizers",
    "release_gradients",
    "save_in_16_bits",
    "utils",
]


_register_names(vars(optimizers).values())


def __dir__():
    return __all__


def _without_files(module):
    """Return the public names of a module, without the files behind them."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, _types.ModuleType)
    ]


# So that tab-completion shows what is public, and nothing else.
for _name in __all__:
    if isinstance(globals()[_name], _types.ModuleType):
        _module = globals()[_name]
        _module.__dir__ = _functools.partial(_without_files, _module)
