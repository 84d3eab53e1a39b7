import functools
import inspect

from keras_efficient.kernels.ffi import tensors
from keras_efficient.kernels.ffi.numba_kernel import NumbaKernel


def numba_ffi(
    kernel=None, *, in_place=(), outputs=None, dtypes=None, **options
):
    """Turn a Numba kernel into a function on tensors of any framework.

    What is returned takes tensors of JAX (also within `jax.jit` and
    `jax.vmap`), of TensorFlow (eager, in a `tf.function`, with
    `jit_compile=True`), of PyTorch, or arrays of NumPy, on the CPU. On
    PyTorch and NumPy the kernel works on the tensors' own memory. On JAX and
    TensorFlow it is a handler of the XLA FFI: part of the compiled program,
    on XLA's own buffers, without a copy and without Python.

    A kernel gets every tensor as a C-contiguous array of its own shape and
    dtype, except that

    - a 0-d tensor or a Python number is an array of one element, `x[0]`,
      because parallel loops of Numba cannot read arrays without an axis;
    - bfloat16 and float16, which Numba lacks on the CPU, are uint16 bits.

    It is compiled at the first call, once for each combination of dtypes and
    numbers of axes; give tensors of different ranks one axis to share a
    compilation. What is compiled is kept on disk, except for the handler
    around it, until the file of the kernel changes. Numba does not see changes
    of functions that the kernel calls from other files.

    In place. The parameters in `in_place` are read, overwritten and returned.
    PyTorch and NumPy: the tensor itself is overwritten. JAX: the argument
    keeps its value, at the cost of a copy that XLA leaves out where the
    argument is donated or not needed any more. TensorFlow: likewise, and
    variables that are assigned the result need no copy within
    `jit_compile=True`. Tensors must not share memory, and a kernel must not
    write to a parameter that is neither in `in_place` nor in `outputs`.

    Threads. XLA may run several handlers at a time. Numba's threading layers
    `omp` and `tbb` bear that; where Numba has only `workqueue`, kernels are
    compiled without `parallel`, and not kept on disk. So they are in a forked
    process, where the threads of its parent are missing: OpenMP would end it,
    or wait for ever. Kernels take as many threads as the framework may, at
    most; see `keras_efficient.config.set_num_threads`.
    OpenMP's threads spin while they wait, which takes milliseconds a call where
    other work keeps the cores busy. They are told not to, unless
    `OMP_WAIT_POLICY` is set or OpenMP is loaded already, as it is by PyTorch:
    set `OMP_WAIT_POLICY=passive` there.

    Errors in a kernel. An exception is raised as it is on PyTorch and NumPy,
    and as an error of XLA that names the kernel on JAX and TensorFlow. Numba
    itself loses exceptions of parallel loops. Indices are not checked: one
    that is out of bounds reads or writes foreign memory, which can end the
    process. `NUMBA_BOUNDSCHECK=1` turns it into an exception, with
    `parallel=False` to see it.

    There is no derivative: JAX and TensorFlow raise an error if one is
    taken, and with PyTorch inputs must not require a gradient. `jax.vmap`
    calls the kernel once an example. Programs that are partitioned over
    devices cannot split a kernel.

    Args:
        kernel: Function of arrays that Numba can compile, without a return
            value; or what `numba.njit` made of one, whose options are dropped.
        in_place: Name of a parameter, or a tuple of names. Defaults to `()`.
        outputs: Dict from the names of the parameters that are results only,
            and not arguments of the call, to what they are: a pair
            `(shape, dtype)`; the name of an argument that has the same; or a
            function that gets the `shape` and `dtype` (a string) of all
            arguments, each as an object with these two attributes, and
            returns a pair. Kernels find them uninitialized. Defaults to
            `None`.
        dtypes: Dict from names of parameters to the dtype, or a tuple of the
            dtypes, that the kernel is written for. Others are an error; without
            an entry they are compiled for. Defaults to `None`.
        **options: Options of `numba.njit`, such as `parallel=True` or
            `fastmath=True`. Other defaults than Numba's:
            `error_model="numpy"`, `nogil=True` and `cache=True`.

    Returns:
        Function of the parameters that are not in `outputs`, by position. It
        returns those that are in `in_place` or `outputs`, in the order of the
        parameters: one tensor or a tuple. It can be used as a decorator with
        arguments, too.

    Raises:
        ValueError: if names do not fit, and by the call: if a tensor that is
            overwritten is not contiguous or a shape of TensorFlow is unknown.
        TypeError: by the call, if there are too few or too many arguments, or
            of a wrong type or dtype, or a tensor of PyTorch that is not plain,
            such as a DTensor; if the kernel returns something.
        RuntimeError: by the call, if tensors are not on the CPU, Numba is
            missing, or the framework has a version of the XLA FFI that was not
            tested.

    Example:

    ```python
    import numba
    import numpy as np

    @keras_efficient.kernels.numba_ffi(
        in_place="velocity", outputs={"step": "velocity"}, parallel=True
    )
    def momentum(velocity, gradient, rate, step):
        for i in numba.prange(velocity.size):
            velocity[i] = 0.9 * velocity[i] + gradient[i]
            step[i] = -rate[0] * velocity[i]

    velocity, gradient = np.zeros(5, "float32"), np.ones(5, "float32")
    velocity, step = momentum(velocity, gradient, 0.1)
    # The same with tensors, and with `jax.jit(momentum)`.
    ```

    Reference:
        - [XLA FFI](https://openxla.org/xla/custom_call)
    """
    if kernel is None:
        return functools.partial(
            numba_ffi,
            in_place=in_place,
            outputs=outputs,
            dtypes=dtypes,
            **options,
        )
    kernel = NumbaKernel(kernel, in_place, outputs, dtypes, options)

    def call(*args):
        framework = tensors.framework_of(args)
        if framework is None:
            raise TypeError(
                f"'{kernel.name}' takes tensors of JAX, TensorFlow or PyTorch, "
                "arrays of NumPy and Python numbers. Received: "
                f"{tuple(map(type, args))}"
            )
        return _host(framework)(kernel, args)

    functools.update_wrapper(call, kernel.function)
    # Not the kernel's own signature, which has the outputs as well.
    del call.__wrapped__
    kinds = inspect.Parameter.POSITIONAL_ONLY
    call.numba_kernel = kernel
    call.__signature__ = inspect.Signature(
        [inspect.Parameter(name, kinds) for name in kernel.inputs]
    )
    return call


def _host(framework):
    if framework == "jax":
        from keras_efficient.kernels.ffi.jax import call
    elif framework == "tensorflow":
        from keras_efficient.kernels.ffi.tensorflow import call
    elif framework == "torch":
        from keras_efficient.kernels.ffi.torch import call
    else:
        from keras_efficient.kernels.ffi.numpy import call
    return call
