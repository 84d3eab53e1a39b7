import importlib.metadata
import json
import platform
import sys

import keras
from rich.console import Console
from rich.table import Table

from keras_efficient import config
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
    return 0


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices():
    """Return the names of the devices of the backend that is loaded."""
    backend = keras.config.backend()
    module = sys.modules.get(backend)
    if backend == "jax":
        return [f"{x.device_kind} ({x.id})" for x in module.devices()]
    if backend == "tensorflow":
        return [x.name for x in module.config.list_logical_devices()]
    if backend == "torch" and module.cuda.is_available():
        count = module.cuda.device_count()
        return [module.cuda.get_device_name(i) for i in range(count)]
    return ["cpu"]
