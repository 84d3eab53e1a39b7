"""What PyTorch allows on a CPU alone."""

import sys
from pathlib import Path

import keras_efficient

PACKAGE = str(Path(keras_efficient.__file__).parent)


def refuse_arrays(monkeypatch):
    """Let the package mix no array with a tensor: on a GPU it could not.

    There an operator with an array, or `np.asarray`, is an error. On a CPU
    PyTorch turns one into the other.
    """
    import torch

    convert = torch.Tensor.__array__
    skipped = str(Path(torch.__file__).parent)

    def refuse(self, *args, **kwargs):
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith(skipped):
            frame = frame.f_back
        if frame.f_code.co_filename.startswith(PACKAGE):
            raise TypeError("can't convert a tensor of a GPU to an array")
        return convert(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "__array__", refuse)
