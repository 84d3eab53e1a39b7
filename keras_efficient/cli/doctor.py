import importlib.metadata
import json
import platform
import sys
import time

import keras
from rich.console import Console
from rich.table import Table

from keras_efficient import config
from keras_efficient.optimizers import Adam8bit
from keras_efficient.version import __version__

PACKAGES = ("keras", "jax", "tensorflow", "torch", "numba", "triton")


def doctor(options):
    """Print what is installed here, and which kernels would run."""
    versions = {"python": platform.python_version()}
    versions["keras_efficient"] = __version__
    for package in PACKAGES:
        versions[package] = _version(package)
    found = {
        "versions": versions,
        "backend": keras.config.backend(),
        "devices": _devices(),
        "kernels": config.report(verbose=0),
    }
    if options.gpu:
        found["gpu"] = step_on_gpu()
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    console = Console()
    table = Table("", "version", title=f"Keras runs on {found['backend']}")
    for name, version in versions.items():
        table.add_row(name, version or "not installed")
    console.print(table)
    console.print("devices:", ", ".join(found["devices"]))
    config.report()
    if options.gpu:
        console.print("a step on a GPU:", found["gpu"])
    return 0


def step_on_gpu():
    """Make a step of `Adam8bit` on a GPU; return what it ran on and took."""
    module, backend = _module(), keras.config.backend()
    if backend == "torch" and module.cuda.is_available():
        name, place = module.cuda.get_device_name(0), "gpu"
    elif backend == "jax" and module.default_backend() == "gpu":
        name, place = module.devices()[0].device_kind, "gpu"
    elif backend == "tensorflow" and module.config.list_logical_devices("GPU"):
        name, place = module.config.list_logical_devices("GPU")[0].name, "gpu"
    else:
        raise RuntimeError(
            f"{backend} sees no GPU. Received: devices {_devices()}. It may "
            "have been installed without CUDA."
        )
    with keras.device(place):
        variable = keras.Variable(keras.ops.ones((1024, 1024)))
        optimizer = Adam8bit(0.1)
        start = time.perf_counter()
        optimizer.apply([keras.ops.ones((1024, 1024))], [variable])
        moved = float(keras.ops.max(variable))
    if not abs(moved - 0.9) < 1e-3:
        raise RuntimeError(f"A step on {name} is wrong: 1 - 0.1 is {moved}")
    return {"device": name, "seconds": time.perf_counter() - start}


def _module():
    return sys.modules.get(keras.config.backend())


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices():
    """Return the names of the devices of the backend that is loaded."""
    backend, module = keras.config.backend(), _module()
    if backend == "jax":
        return [f"{x.device_kind} ({x.id})" for x in module.devices()]
    if backend == "tensorflow":
        return [x.name for x in module.config.list_logical_devices()]
    if backend == "torch" and module.cuda.is_available():
        count = module.cuda.device_count()
        return [module.cuda.get_device_name(i) for i in range(count)]
    return ["cpu"]
