"""A kernel with its signature, compiled for the dtypes it meets."""

import hashlib
import inspect
import threading
from pathlib import Path

from keras_efficient.kernels.ffi import cache
from keras_efficient.kernels.ffi import threads
from keras_efficient.kernels.ffi.tensors import Spec
from keras_efficient.kernels.ffi.threads import threading_layer

# Numba has no type for these on the CPU: kernels get their bits.
_BITS = {"bfloat16": "uint16", "float16": "uint16"}
_DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
)

_lock = threading.RLock()
_targets = {}  # all names given to XLA in this process


def drop_stale_cache(folder, cache_folder=None):
    """Delete what Numba compiled before a source in a folder was changed.

    It lies in `cache_folder`, by default `__pycache__`. Numba compares the file
    of a kernel only, not those of the functions that are compiled into it:
    after a change there it would run what does not fit together, and write to
    foreign memory.
    """
    changed = max(path.stat().st_mtime for path in folder.glob("*.py"))
    cache_folder = cache_folder or folder / "__pycache__"
    for path in Path(cache_folder).glob("*.nb[ci]"):
        try:
            if path.stat().st_mtime < changed:
                path.unlink()
        except OSError:  # another process was first, or nobody may write here
            pass


class NumbaKernel:
    """What `numba_ffi` knows of a kernel. See there for the arguments."""

    def __init__(self, kernel, in_place, outputs, dtypes, options):
        self.function = getattr(kernel, "py_func", kernel)  # if compiled
        self.name = self.function.__name__
        self.parameters = tuple(inspect.signature(self.function).parameters)
        in_place = (in_place,) if isinstance(in_place, str) else in_place
        self.in_place = tuple(in_place)
        self.outputs = dict(outputs or {})
        self.dtypes = dict(dtypes or {})
        self.options = options
        self._check_names()
        self.inputs = [p for p in self.parameters if p not in self.outputs]
        self.results = [
            p
            for p in self.parameters
            if p in self.outputs or p in self.in_place
        ]
        # From the index among the inputs to that among the results.
        self.aliases = {
            self.inputs.index(p): self.results.index(p) for p in self.in_place
        }
        self._dispatcher = None
        self.is_parallel = False  # known with the dispatcher
        # Whether it enters no parallel loop where it is told one thread.
        self.counts_threads = False
        self._handlers = {}
        self._checked = set()  # dtypes and ranks with a known return type

    def _check_names(self):
        likes = [x for x in self.outputs.values() if isinstance(x, str)]
        inputs = [p for p in self.parameters if p not in self.outputs]
        for argument, names, known in (
            ("in_place", self.in_place, self.parameters),
            ("outputs", self.outputs, self.parameters),
            ("outputs", likes, inputs),
            ("dtypes", self.dtypes, inputs),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"`{argument}` of '{self.name}' must name parameters "
                        f"among {tuple(known)}. Received: {name!r}"
                    )
        both = set(self.in_place) & set(self.outputs)
        if both:
            raise ValueError(
                "A parameter cannot be in `in_place` and in `outputs`. "
                f"Received: {sorted(both)}"
            )
        if not self.in_place and not self.outputs:
            raise ValueError(
                f"'{self.name}' has no result. Name at least one of its "
                f"parameters {self.parameters} in `in_place` or `outputs`."
            )

    def check_inputs(self, specs):
        """Raise an error if the dtypes of the inputs are not allowed."""
        for name, spec in zip(self.inputs, specs):
            allowed = self.dtypes.get(name, _DTYPES)
            allowed = (allowed,) if isinstance(allowed, str) else allowed
            if spec.dtype not in allowed:
                raise TypeError(
                    f"'{name}' of '{self.name}' must have dtype "
                    f"{' or '.join(allowed)}. Received: {spec.dtype} with "
                    f"shape {spec.shape}"
                )

    def result_specs(self, specs):
        """Return a `Spec` for each result, given those of the inputs."""
        known = dict(zip(self.inputs, specs))
        for name, output in self.outputs.items():
            if callable(output):
                output = output(*specs)
            elif isinstance(output, str):
                output = known[output]
            shape, dtype = output
            if dtype not in _DTYPES:
                raise TypeError(
                    f"The output '{name}' of '{self.name}' must have one of "
                    f"the dtypes {_DTYPES}. Received: {dtype!r}"
                )
            known[name] = Spec(tuple(map(int, shape)), dtype)
        return [known[name] for name in self.results]

    def dispatcher(self):
        """Return the kernel as a function on arrays that Numba compiles."""
        import numba

        with _lock:
            if self._dispatcher is None:
                options = {
                    "error_model": "numpy",
                    "nogil": True,
                    "cache": True,
                    **self.options,
                }
                self.is_parallel = bool(options.get("parallel"))
                # Two threads must not enter a workqueue.
                if self.is_parallel and (
                    self._hangs_here() or threading_layer() == "workqueue"
                ):
                    self.is_parallel = False
                    options.update(parallel=False, cache=False)
                # What is on disk does not tell whether it checks.
                if numba.config.BOUNDSCHECK:
                    options["cache"] = False
                self._dispatcher = cache.njit(self.function, options)
            return self._dispatcher

    def run(self, arrays, most_threads):
        """Run the kernel on arrays of NumPy, in the order of parameters."""
        import numba

        if self.is_parallel and self._hangs_here():
            self._forget()
        arrays = [as_argument(array) for array in arrays]
        key = tuple([(array.dtype, array.ndim) for array in arrays])
        if key not in self._checked:
            self._check_return_type(tuple(map(numba.typeof, arrays)))
            self._checked.add(key)
        dispatcher = self.dispatcher()
        if self.is_parallel:
            threads.run(dispatcher, arrays, most_threads)
        else:
            dispatcher(*arrays)

    def _hangs_here(self):
        """Return whether its loops would wait for the threads of a parent."""
        return threads.is_forked() and not self.counts_threads

    def _forget(self):
        """Compile anew: what runs in parallel cannot run here."""
        self._dispatcher = None
        self._checked = set()
        self.is_parallel = False

    def _check_return_type(self, types):
        """Compile for types of arguments; raise an error if it returns."""
        import numba

        dispatcher = self.dispatcher()
        try:
            dispatcher.compile(types)
        except numba.core.errors.NumbaError:
            raise
        except Exception:  # whatever reading a broken file may raise
            if not cache.drop(dispatcher):
                raise
            self._dispatcher = None
            dispatcher = self.dispatcher()
            dispatcher.compile(types)
        found = dispatcher.overloads[types].signature.return_type
        if found != numba.types.none:
            raise TypeError(
                f"'{self.name}' must return nothing. Its results are what it "
                f"writes to {', '.join(map(repr, self.results))}. Received: a "
                f"kernel that returns {found}. Assign to the elements of a "
                "parameter that is in `in_place` or `outputs` instead."
            )

    def handler(self, specs, results, framework):
        """Return the compiled XLA handler for a signature, and its name.

        Args:
            specs: List of the `Spec`s of the inputs.
            results: List of the `Spec`s of the results.
            framework: "jax" or "tensorflow", whose limit of threads counts.
        """
        threads.limit_handlers(framework)
        known = dict(zip(self.inputs, specs))
        known.update(zip(self.results, results))
        known = [known[name] for name in self.parameters]
        key = tuple((spec.dtype, len(spec.shape)) for spec in known)
        with _lock:
            if key not in self._handlers:
                self._handlers[key] = self._compile(known, key)
            return self._handlers[key]

    def _compile(self, specs, key):
        from keras_efficient.kernels.ffi import xla_handler

        parameters = []
        for name, spec in zip(self.parameters, specs):
            is_result = name in self.results
            index = (self.results if is_result else self.inputs).index(name)
            spec = Spec(spec.shape, _BITS.get(spec.dtype, spec.dtype))
            parameters.append((spec, is_result, index))
        self._check_return_type(
            tuple(xla_handler.array_type(spec) for spec, *_ in parameters)
        )
        compiled = xla_handler.compile_handler(
            self.dispatcher(),
            parameters,
            {result: index for index, result in self.aliases.items()},
            self.name,
            self.is_parallel,
        )
        # The same in each process, for programs that XLA keeps on disk.
        text = f"{self.function.__module__}.{self.function.__qualname__}{key}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        name = f"numba_ffi.{self.name}.{digest}"
        while name in _targets:  # another function of that name
            name += "_"
        _targets[name] = compiled
        return compiled, name


def as_argument(array):
    """View an array of NumPy in the dtype and shape that kernels get."""
    # Compiled loops cannot read from arrays without an axis.
    array = array if array.ndim else array.reshape(1)
    # The name of a dtype takes microseconds; bfloat16 is of another kind.
    if array.dtype.itemsize == 2 and array.dtype.kind not in "iu":
        return array.view(_BITS[array.dtype.name])
    return array
