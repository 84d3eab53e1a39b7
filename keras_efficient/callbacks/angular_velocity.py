import math

import numpy as np

from keras_efficient import backend


class AngularVelocity:
    """Measure the angle between successive steps of a set of variables.

    Time is cut into windows. With y_i the mean of the parameters sampled in
    window i, one vector of all variables, angles in degrees:

    ```
    s_i = y_i - y_{i-1}
    w_i = arccos(s_i . s_{i-1} / (|s_i| |s_{i-1}|))
    ```

    0 is a straight walk, 90 a random one; points that scatter about one place
    give 120. Dot products are taken variable by variable and summed in
    float64: the angle does not depend on the length of the steps, however
    short. A window that moves nothing has no angle and is passed over.
    Parameters that are not finite, and other variables than those before,
    clear the history.

    Points are float32 copies in host memory, at most three of them. They have
    to be copies: JAX donates the arrays of a model to the next step, torch and
    TensorFlow overwrite them.

    Attributes:
        points: List of the last points, each a list of arrays; never more
            than two between windows.
        samples: Integer, how many the open window holds.
    """

    def __init__(self):
        self._signature = None
        self.clear()

    def clear(self, keep=0):
        """Forget all but the `keep` newest points, and the open window."""
        self.points = self.points[-keep:] if keep else []
        self._open_window()

    def _open_window(self):
        self._sum, self.samples, self._is_finite = [], 0, True

    def sample(self, variables):
        """Add the values of variables to the open window."""
        self._check_signature(variables)
        for i, variable in enumerate(variables):
            if not self._is_finite:
                return
            # A copy, and one of a single variable at a time.
            # All of it, so that all processes find the same angle.
            value = np.array(backend.whole(variable), dtype="float32")
            if not np.isfinite(value).all():
                self.clear()
                self._is_finite = False
            elif self.samples:
                self._sum[i] += value
            else:
                self._sum.append(value)
        self.samples += 1

    def _check_signature(self, variables):
        signature = [(v.path, tuple(v.shape)) for v in variables]
        if self._signature is None:
            # What was restored from a file has shapes, and no paths: those
            # change with each model built in a process.
            known = [array.shape for array in (self.points or [self._sum])[-1]]
            is_known = known == [shape for _, shape in signature]
        else:
            is_known = signature == self._signature
        self._signature = signature
        if not is_known:
            self.clear()

    def close(self):
        """Close the open window; return the angle in degrees or NaN."""
        point, samples = self._sum, self.samples
        is_finite = self._is_finite
        self._open_window()
        if not is_finite or not samples:
            return math.nan
        for values in point:
            values /= samples
        if self.points and all(map(np.array_equal, self.points[-1], point)):
            return math.nan
        points = [*self.points, point]
        self.points = points[-2:]
        return angle_of_steps(*points) if len(points) == 3 else math.nan

    def state(self):
        """Return what is remembered: arrays by name."""
        rows = {"sum": self._sum}
        rows.update({f"point_{i}": p for i, p in enumerate(self.points)})
        arrays = {
            f"{name}_{i}": array
            for name, row in rows.items()
            for i, array in enumerate(row)
        }
        counts = [len(self.points), self.samples, self._is_finite]
        return {**arrays, "counts": np.array(counts)}

    def restore(self, arrays):
        """Go on from what `state` returned."""

        def row(name):
            values = []
            while f"{name}_{len(values)}" in arrays:
                array = arrays[f"{name}_{len(values)}"]
                values.append(np.array(array, dtype="float32"))
            return values

        points, samples, is_finite = np.array(arrays["counts"]).tolist()
        self.points = [row(f"point_{i}") for i in range(points)]
        self._sum, self.samples = row("sum"), samples
        self._is_finite, self._signature = bool(is_finite), None


def angle_of_steps(older, old, new):
    """Return the angle between the steps older-old and old-new, in degrees.

    Points are lists of arrays, one for each variable. In float64 the square of
    no step of float32 parameters over- or underflows.
    """
    uu = uv = vv = 0.0
    for x, y, z in zip(older, old, new):
        u = np.subtract(y, x, dtype="float64").ravel()
        v = np.subtract(z, y, dtype="float64").ravel()
        uu += float(u @ u)
        uv += float(u @ v)
        vv += float(v @ v)
    cosine = uv / math.sqrt(uu) / math.sqrt(vv)
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
