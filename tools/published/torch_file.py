"""Read the tensors of a file of `torch.save`; nothing in it is run.

Such a file is a pickle in a zip archive, with the numbers beside it. A pickle
names functions to be called. Here the few that rebuild tensors stand for
functions of this file, and all others for an object that does nothing: no
module is imported, and neither PyTorch nor the authors' packages are needed.
"""

import collections
import pickle
import zipfile
from pathlib import PurePosixPath

import numpy as np

_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "uint16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class Foreign:
    """Stands for whatever the file holds besides tensors and containers."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass


def read(path):
    """Return what a file of `torch.save` holds, with NumPy arrays.

    Args:
        path: Path of the file.

    Raises:
        ValueError: it is no such file, or a part of it is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            (pickled,) = (n for n in names if n.endswith("/data.pkl"))
            folder = PurePosixPath(pickled).parent
            if f"{folder}/byteorder" in names:
                order = archive.read(f"{folder}/byteorder").decode()
                if order != "little":
                    raise ValueError(f"its numbers are {order} endian")
            with archive.open(pickled) as file:
                return _Unpickler(file, archive, folder).load()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"'{path}' must be a whole file of `torch.save` of PyTorch 1.6 or "
            f"later (a zip archive). It cannot be read: {error}. Download it "
            "again, or load and save it once by PyTorch."
        ) from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, archive, folder):
        super().__init__(file)
        self.archive = archive
        self.folder = folder

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if module == "torch" and name in _DTYPES:
            return name
        return known.get((module, name), Foreign)

    def persistent_load(self, identity):
        _, storage, key, *_ = identity
        data = self.archive.read(f"{self.folder}/data/{key}")
        if not isinstance(storage, str):
            return Foreign()
        numbers = np.frombuffer(data, _DTYPES[storage])
        if storage == "BFloat16Storage":
            numbers = (numbers.astype("uint32") << 16).view("float32")
        return numbers


def _tensor(storage, offset, size, strides, *_):
    if isinstance(storage, Foreign):
        return storage
    last = offset + sum((n - 1) * s for n, s in zip(size, strides))
    if min(0, offset, *size, *strides) < 0:
        raise ValueError(f"a tensor has shape {size} and strides {strides}")
    if 0 not in size and last >= storage.size:
        raise ValueError(f"a tensor of shape {size} has too few numbers")
    strides = [s * storage.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)


def _parameter(data, *_):
    return data
