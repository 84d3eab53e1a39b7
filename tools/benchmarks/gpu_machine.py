"""Ask a framework for its version and the name of its GPU.

`python -m benchmarks.gpu_machine torch result.json`; null is "no GPU".
"""

import importlib
import json
import sys
from pathlib import Path


def of_torch(torch):
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)


def of_jax(jax):
    device = jax.devices()[0]
    return device.device_kind if device.platform == "gpu" else None


def of_tensorflow(tensorflow):
    devices = tensorflow.config.list_physical_devices("GPU")
    if devices:
        details = tensorflow.config.experimental.get_device_details(devices[0])
        return details.get("device_name", devices[0].name)


if __name__ == "__main__":
    name, output = sys.argv[1:]
    module = importlib.import_module(name)
    gpu = globals()[f"of_{name}"](module)
    found = {"version": module.__version__, "gpu": gpu}
    Path(output).write_text(json.dumps(found))
