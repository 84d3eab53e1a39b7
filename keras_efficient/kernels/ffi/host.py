from keras_efficient.kernels.ffi import support
from keras_efficient.kernels.ffi import tensors


class Host:
    """How a framework runs a kernel: what is the same for all of them.

    A subclass has the name of its `framework` and the three methods below.
    """

    framework = None

    def __call__(self, kernel, args):
        """Run a `NumbaKernel` and return its result, or a tuple of them."""
        if len(args) != len(kernel.inputs):
            raise TypeError(
                f"'{kernel.name}' takes {len(kernel.inputs)} arguments: "
                f"{', '.join(kernel.inputs)}. Received: {len(args)}"
            )
        device = tensors.device_of(args, self.framework)
        reason = support.why_not(self.framework, device)
        if reason:
            raise RuntimeError(
                f"'{kernel.name}' cannot run on {self.framework} tensors on "
                f"'{device}': {reason}."
            )
        values = [
            self.as_tensor(tensors.as_array(value), name)
            for value, name in zip(args, kernel.inputs)
        ]
        specs = [self.spec_of(value) for value in values]
        kernel.check_inputs(specs)
        results = self.run(kernel, values, specs, kernel.result_specs(specs))
        return results[0] if len(results) == 1 else tuple(results)

    def as_tensor(self, value, name):
        """Convert a tensor or an array of NumPy to a tensor."""
        raise NotImplementedError

    def spec_of(self, tensor):
        """Return the `Spec` of a tensor."""
        raise NotImplementedError

    def run(self, kernel, values, specs, results):
        """Run the kernel and return a list of tensors.

        Args:
            kernel: `NumbaKernel`.
            values: List of tensors, the inputs.
            specs: List of their `Spec`s.
            results: List of the `Spec`s of the results.
        """
        raise NotImplementedError
