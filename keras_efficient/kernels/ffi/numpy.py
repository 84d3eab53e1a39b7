"""Kernels on arrays of NumPy."""

import numpy as np

from keras_efficient.kernels.ffi import threads
from keras_efficient.kernels.ffi.host import Host
from keras_efficient.kernels.ffi.tensors import Spec


class NumPyHost(Host):
    framework = "numpy"

    def as_tensor(self, value, name):
        return np.asarray(value)

    def spec_of(self, tensor):
        return Spec(tensor.shape, tensor.dtype.name)

    def run(self, kernel, values, specs, results):
        arrays = dict(zip(kernel.inputs, values))
        for name in kernel.in_place:
            flags = arrays[name].flags
            if not flags.c_contiguous or not flags.writeable:
                raise ValueError(
                    f"'{name}' is overwritten by '{kernel.name}' and must be "
                    "C-contiguous and writeable. Received: strides "
                    f"{arrays[name].strides}, writeable={flags.writeable}"
                )
        # What is contiguous is not copied; 0-d arrays stay 0-d.
        arrays = {name: np.asarray(x, order="C") for name, x in arrays.items()}
        for name, spec in zip(kernel.results, results):
            if name in kernel.outputs:
                arrays[name] = np.empty(spec.shape, _dtype(spec.dtype))
        kernel.run(
            [arrays[name] for name in kernel.parameters],
            threads.limit(self.framework),
        )
        return [arrays[name] for name in kernel.results]


def _dtype(name):
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return name


call = NumPyHost()
