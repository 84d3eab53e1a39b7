"""Logarithms of Jacobian determinants, as one more stream of a run.

A block that gives `log |det J|` beside its outputs becomes a block of streams
and a sum,

```
couple:    y = b(x),  s' = s + log |det J_b(x)|
uncouple:  x = b^-1(y),  s = s' - log |det J_b(x)|
```

so that a run keeps no more for the sum than one number an example.
"""


class WithLogDet:
    """A block of streams, and of the sum as the last of them."""

    undoes = False

    def __init__(self, block):
        self.block = block
        self.keeps_inputs = block.keeps_inputs
        self.bijective = block.bijective
        self.standardize = block.standardize
        self.compute_dtype = block.compute_dtype
        self.variables = block.variables

    def couple(self, streams, evaluate):
        *streams, total = streams
        block = self.block
        outputs, more = block.couple_with_log_det(tuple(streams), evaluate)
        return *outputs, total + more

    def uncouple(self, streams, evaluate):
        *streams, total = streams
        block = self.block
        inputs, more = block.uncouple_with_log_det(tuple(streams), evaluate)
        return *inputs, total - more

    def pull_back(self, outputs, cotangents, vjp):
        block = AtInputs(self) if self.keeps_inputs else self
        return vjp.derive(block, outputs, cotangents)


class AtInputs:
    """A block whose backward pass begins with its inputs."""

    def __init__(self, block):
        self.couple = block.couple

    def uncouple(self, streams, evaluate):
        return streams


class HasLogDet:
    """The part of a reversible layer that knows its determinant."""

    def couple_with_log_det(self, streams, evaluate):
        """Compute the outputs, and `log |det J|` of each example.

        J is the Jacobian of all outputs by all inputs. A block that only
        adds has the determinant 1; another one defines this method and
        `uncouple_with_log_det`, if it is to be a part of a normalizing flow.

        Args:
            streams: As in `couple`.
            evaluate: As in `couple`.

        Returns:
            `(outputs, log_det)`, the latter of shape `(batch,)` or a number.
        """
        self._check_volume()
        return self.couple(streams, evaluate), 0.0

    def uncouple_with_log_det(self, streams, evaluate):
        """Compute the inputs, and what `couple_with_log_det` says of them."""
        self._check_volume()
        return self.uncouple(streams, evaluate), 0.0

    def _check_volume(self):
        if not (self.additive and self.bijective):
            raise ValueError(
                f"Layer '{self.name}' (of {type(self)}) does not tell the "
                "determinant of its Jacobian"
                + (
                    ": define `couple_with_log_det` and "
                    "`uncouple_with_log_det`."
                    if self.bijective
                    else ", which is no square matrix: it has other streams at "
                    "its output than at its input."
                )
            )
