import keras
from keras import ops

from keras_efficient import backend


class ChunkedHead:
    """The last layer of a model, for a chunk of tokens at a time.

    Args:
        hidden: Tensor of shape `(tokens, width)`.
        parameters: Tuple of the kernel and, if there is one, the bias.
        loss: `keras_efficient.ops.vocabulary_chunks.Loss`.
    """

    def __init__(self, hidden, parameters, loss):
        kernel, *bias = self.parameters = parameters
        self.loss = loss
        self.dtype = keras.backend.standardize_dtype(hidden.dtype)
        self.wide = "float64" if self.dtype == "float64" else "float32"
        self.vocabulary = kernel.shape[0 if loss.transpose else 1]
        self.size = loss.chunk_size or self._size(*hidden.shape)
        self.kernel = self._as_operand(kernel)
        self.bias = ops.cast(bias[0], self.wide) if bias else None

    def _as_operand(self, kernel):
        return backend.operand(kernel, self.dtype)

    def _size(self, tokens, width):
        """As many tokens as make logits of the size of the hidden states."""
        size = max(
            backend.ROWS_A_CHUNK, (tokens or 0) * width // self.vocabulary
        )
        return size if tokens is None else max(1, min(size, tokens))

    def over_chunks(self, *args):
        """`backend.over_chunks`, with products of the dtype of the head."""
        with backend.products_of(self.dtype):
            return backend.over_chunks(*args)

    def logits_of_chunks(self):
        """Return a function from hidden states of a chunk to their logits."""
        scratch = backend.scratch(self.kernel, self.size, self.vocabulary)

        def logits(h):
            z = backend.product(
                backend.operand(h, self.dtype),
                self.kernel,
                transpose_b=self.loss.transpose,
                bias=self.bias,
                out=scratch,
            )
            cap = self.loss.soft_cap
            return z if cap is None else backend.soft_cap(z, cap)

        return logits

    def cross_entropy(self, z, y, log_sum=None, d=None):
        """Return losses, the logarithms of the sums, and `dz`.

        Args:
            z: Logits, which may be overwritten.
            y: Integer tensor, labels within the vocabulary.
            log_sum: What an earlier call returned, or `None`.
            d: Cotangents of the losses; without them `dz` is `None`.
        """
        e, cap = self.loss.label_smoothing, self.loss.soft_cap
        if backend.cross_entropy is not None:
            return backend.cross_entropy(z, y, e, cap, log_sum, d)
        if log_sum is None:
            log_sum = ops.logsumexp(z, axis=-1)
        picked = ops.take_along_axis(z, y[:, None], axis=-1)[:, 0]
        losses = log_sum - (1 - e) * picked
        if e:
            losses = losses - e * ops.mean(z, axis=-1)
        if d is None:
            return losses, log_sum, None
        words = ops.arange(self.vocabulary, dtype=y.dtype)
        return losses, log_sum, self.slope(z, y, log_sum, d, words)

    def slope(self, z, y, log_sum, d, words):
        """Return `dz` of the logits of some words."""
        e, cap = self.loss.label_smoothing, self.loss.soft_cap
        dz = ops.exp(z - log_sum[:, None])
        dz = dz - e / self.vocabulary if e else dz
        hit = ops.equal(y[:, None], words)
        dz = ops.where(hit, dz - (1 - e), dz) * d[:, None]
        if cap is not None:
            dz = dz * (1 - ops.square(z / cap))
        return dz

    def pull(self, dz, h, sums, of_hidden=True):
        """Return the gradient of `h`, and those of parameters added to `sums`.

        No sums are for no gradients of parameters.
        """
        transpose = self.loss.transpose
        slope = backend.factor(dz, self.dtype)
        d_hidden = None
        if of_hidden:
            d_hidden = backend.product(
                slope, self.kernel, transpose_b=not transpose
            )
        if not sums:
            return d_hidden, sums
        h = backend.operand(h, self.dtype)
        pair = (slope, h) if transpose else (h, slope)
        total, *bias = sums
        total = backend.add_product(total, *pair)
        return d_hidden, (total, *(b + ops.sum(dz, axis=0) for b in bias))

    def zeros(self):
        """Return the sums to start `pull` with."""
        return tuple(ops.zeros(x.shape, self.wide) for x in self.parameters)

    def losses(self, hidden, labels, metrics):
        """Return losses, the logarithms of the sums, the state of metrics."""
        logits = self.logits_of_chunks()

        def step(state, rows):
            h, y, label, *more = rows
            z = logits(h)
            if metrics.update is not None:
                state = metrics.update(state, label, z, *more)
            values, log_sum, _ = self.cross_entropy(z, y)
            return state, (values, log_sum)

        rows = [hidden, self.index(labels), labels, *metrics.rows]
        kinds = [(self.wide, ()), (self.wide, ())]
        state, (values, log_sum) = self.over_chunks(
            step, metrics.state, rows, self.size, kinds
        )
        return values, log_sum, state

    def gradients(self, hidden, labels, log_sum, d, trainable):
        """Return the gradients of hidden states and of the parameters.

        Args:
            d: Cotangents of the losses.
            trainable: Whether the second ones are needed; else they are
                `None`.
        """
        d, unit = self.normalized(d)
        logits = self.logits_of_chunks()

        def step(sums, rows):
            h, y, log_sum, d = rows
            _, _, dz = self.cross_entropy(logits(h), y, log_sum, d)
            d_hidden, sums = self.pull(dz, h, sums)
            return sums, (scaled(d_hidden, unit, self.dtype),)

        rows = [hidden, self.index(labels), log_sum, d]
        kinds = [(self.dtype, (hidden.shape[1],))]
        sums = self.zeros() if trainable else ()
        sums, (d_hidden,) = self.over_chunks(step, sums, rows, self.size, kinds)
        if not trainable:
            return d_hidden, None
        return d_hidden, tuple(
            scaled(total, unit, x.dtype)
            for total, x in zip(sums, self.parameters)
        )

    def normalized(self, d):
        """Return `d / unit` and `unit`, so that float16 can hold `dz`.

        Cotangents of about one by the number of tokens, times probabilities,
        would be lost in it.
        """
        if self.dtype != "float16":
            return d, None
        unit = ops.maximum(ops.max(ops.abs(d)) / 256, 1e-30)
        return d / unit, unit

    def index(self, labels):
        return ops.clip(labels, 0, self.vocabulary - 1)

    def masked(self, values, labels):
        if self.loss.ignore_class is None:
            return values
        ignored = ops.equal(labels, self.loss.ignore_class)
        return ops.where(ignored, 0.0, values)

    def poisoned(self, values, labels):
        fits = ops.equal(labels, self.index(labels))
        return ops.where(fits, values, float("nan"))


def scaled(gradient, factor, dtype):
    """Return a gradient times a factor, which may be `None`, in a dtype."""
    if factor is not None:
        gradient = gradient * factor
    return ops.cast(gradient, dtype)
