import math

import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.ops.chunked_head import ChunkedHead
from keras_efficient.ops.chunked_head import scaled

# Logits that a piece of the vocabulary makes of all tokens, and the fewest
# words that make a fast product.
ENTRIES_A_PIECE = 2**22
WORDS_A_PIECE = 1024


class HeadInPieces(ChunkedHead):
    """As `ChunkedHead`, for a piece of the vocabulary and all tokens at a time.

    This is for kernels of 16 bits. Sums over tokens are to be float32, and a
    float32 tensor of the size of the kernel would be twice the gradient. Here
    each entry of the gradient is summed by one product, and rounded once.

    Metrics need the logits of whole tokens, so that the losses are those of
    chunks of tokens if there are any.
    """

    def _as_operand(self, kernel):
        return backend.large_operand(kernel, self.dtype)

    def over_pieces(self, step, carry, tokens, kinds):
        """Run a function over pieces of the vocabulary, one after the other.

        Args:
            step: `step(carry, kernel, bias, words) -> (carry, results)`, of
                a part of the kernel, `(words, width)`, of the bias, which may
                be `None`, and the indices of the words.
            carry: Nested structure of tensors.
            tokens: Integer or `None`, their number.
            kinds: List of pairs, for each result the dtype and the shape of
                what it has for a word.

        Returns:
            The last carry, and a list of the results of all words.
        """
        kernel, *bias = self.parameters
        if not self.loss.transpose:
            kernel = ops.transpose(kernel)
        words = ops.arange(self.vocabulary, dtype="int32")
        size = WORDS_A_PIECE
        if tokens:
            size = max(size, math.ceil(ENTRIES_A_PIECE / tokens))
            if self.loss.chunk_size:
                entries = self.loss.chunk_size * self.vocabulary
                size = math.ceil(entries / tokens)

        def run(carry, rows):
            words, kernel, *bias = rows
            return step(carry, kernel, bias[0] if bias else None, words)

        size = min(size, self.vocabulary)
        rows = [words, kernel, *bias]
        return self.over_chunks(run, carry, rows, size, kinds)

    def _logits_of_piece(self, h, kernel, bias):
        if bias is not None:
            bias = ops.cast(bias, self.wide)
        kernel = backend.operand(kernel, self.dtype)
        z = backend.product(h, kernel, transpose_b=True, bias=bias)
        cap = self.loss.soft_cap
        return z if cap is None else backend.soft_cap(z, cap)

    def losses(self, hidden, labels, metrics):
        """As in the base class; sums of exponentials add up over pieces."""
        if metrics.update is not None:
            return super().losses(hidden, labels, metrics)
        e = self.loss.label_smoothing
        h = backend.operand(hidden, self.dtype)

        def step(carry, kernel, bias, words):
            log_sum, mean = carry
            z = self._logits_of_piece(h, kernel, bias)
            log_sum = ops.logaddexp(log_sum, ops.logsumexp(z, axis=-1))
            if e:
                mean = mean + ops.sum(z, axis=-1) / self.vocabulary
            return (log_sum, mean), ()

        zeros = ops.cast(ops.zeros_like(hidden[:, 0]), self.wide)
        carry = zeros - float("inf"), zeros
        carry, _ = self.over_pieces(step, carry, hidden.shape[0], [])
        log_sum, mean = carry
        z_y = self._logits_of_labels(h, self.index(labels))
        losses = log_sum - (1 - e) * z_y - e * mean
        return losses, log_sum, metrics.state

    def _logits_of_labels(self, h, y):
        kernel, *bias = self.parameters
        rows = ops.take(kernel, y, axis=0 if self.loss.transpose else 1)
        if not self.loss.transpose:
            rows = ops.transpose(rows)
        rows = backend.operand(rows, self.dtype)
        z = ops.sum(ops.cast(h, self.wide) * ops.cast(rows, self.wide), axis=-1)
        if bias:
            z = z + ops.cast(ops.take(bias[0], y), self.wide)
        cap = self.loss.soft_cap
        return z if cap is None else backend.soft_cap(z, cap)

    def gradients(self, hidden, labels, log_sum, d, trainable):
        """As in the base class."""
        d, unit = self.normalized(d)
        h = backend.operand(hidden, self.dtype)
        y = self.index(labels)

        def step(d_hidden, kernel, bias, words):
            z = self._logits_of_piece(h, kernel, bias)
            dz = self.slope(z, y, log_sum, d, words)
            slope = backend.factor(dz, self.dtype)
            kernel = backend.operand(kernel, self.dtype)
            d_hidden = d_hidden + backend.product(slope, kernel)
            found = [backend.product(slope, h, transpose_a=True)]
            if bias is not None:
                found.append(ops.sum(dz, axis=0))
            found = zip(found, kinds)  # no kinds, no results
            return d_hidden, [scaled(x, unit, kind[0]) for x, kind in found]

        kinds = []
        if trainable:
            rows = zip(self.parameters, [(hidden.shape[1],), ()])
            kinds = [
                (keras.backend.standardize_dtype(x.dtype), shape)
                for x, shape in rows
            ]
        zeros = ops.cast(ops.zeros_like(hidden), self.wide)
        d_hidden, found = self.over_pieces(step, zeros, hidden.shape[0], kinds)
        d_hidden = scaled(d_hidden, unit, self.dtype)
        if not trainable:
            return d_hidden, None
        if not self.loss.transpose:
            found[0] = ops.transpose(found[0])
        return d_hidden, tuple(found)
