"""Products with float32 sums, and loops over chunks of rows, on PyTorch.

Results are written in place wherever that is possible: a chunk of logits does
not fit into the caches, and each pass over new memory takes its time.
"""

import contextlib

import torch

# Fewer rows make slow products.
ROWS_A_CHUNK = 256
# What is worked on together, so that it stays in the caches of a CPU.
ENTRIES_A_PIECE = 2**18


def can_look_at(x):
    """Whether Python can ask for the values of `x` now, and without waiting."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def scratch(like, rows, columns):
    """Memory for the results of `product`, which all chunks share.

    (The system clears new memory first, in as much time as a pass over it.)
    """
    return like.new_empty(rows, columns, dtype=_wide(like.dtype))


def operand(x, dtype):
    """Return `x` as `product` takes it.

    On a CPU the matrix product rounds its result to the dtype of the operands.
    So these are float32 numbers there, with the digits of `dtype`.
    """
    x = x.to(getattr(torch, dtype))
    return x if x.is_cuda else x.to(_wide(x.dtype))


def _wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def large_operand(x, dtype):
    """As `operand`, for a kernel of 16 bits that is not to be copied."""
    return x.to(getattr(torch, dtype))


@contextlib.contextmanager
def products_of(dtype):
    """A context in which `product` may take its operands as `dtype`.

    So a CPU that multiplies bfloat16 numbers does it with the float32 numbers
    that `operand` makes of them, which have no more digits, and a `factor` has
    as many as on a GPU. Sums stay float32. It is a setting of the process:
    other threads see it, too.
    """
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if dtype != "bfloat16" or not settings or torch.compiler.is_compiling():
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def factor(x, dtype):
    """Return a float32 `x` as `product` takes it, beside such operands."""
    return x.to(getattr(torch, dtype)) if x.is_cuda else x


def product(a, b, transpose_a=False, transpose_b=False, bias=None, out=None):
    """Return `a b + bias`, of what `operand` returns.

    It is float32, or float64 if the operands are, in the first rows of `out`.
    """
    a, b = a.T if transpose_a else a, b.T if transpose_b else b
    out = None if out is None else out[: len(a)]
    if b.dtype != a.dtype:
        return _product_with_large(a, b, bias, out)
    if a.dtype != _wide(a.dtype):
        y = torch.mm(a, b, out_dtype=torch.float32, out=out)
        return y if bias is None else y.add_(bias)
    if bias is None:
        return torch.mm(a, b, out=out)
    return torch.addmm(bias, a, b, out=out)


def _product_with_large(a, b, bias, out):
    """As `product`, of a large `b` of 16 bits: a part at a time is widened."""
    if out is None:
        out = a.new_empty(len(a), b.shape[1])
    size = max(1, ENTRIES_A_PIECE * 16 // len(b))
    for start in range(0, b.shape[1], size):
        part = slice(start, start + size)
        torch.mm(a, b[:, part].to(a.dtype), out=out[:, part])
    return out if bias is None else out.add_(bias)


def add_product(total, a, b):
    """Return `total + a^T b`; it overwrites `total`."""
    if a.dtype != total.dtype:
        return total.add_(product(a, b, transpose_a=True))
    return total.addmm_(a.T, b)


def add_rows(total, indices, rows):
    """Return `total` with each row added at its index; it overwrites it."""
    return total.index_add_(0, indices, rows)


def soft_cap(z, cap):
    """Return `cap tanh(z / cap)`; it overwrites `z`."""
    return z.div_(cap).tanh_().mul_(cap)


def cross_entropy(z, labels, smoothing, cap, log_sum=None, d=None):
    """What `VocabularyChunks.cross_entropy` does; it overwrites `z`."""
    rows, vocabulary = z.shape
    log_sums = z.new_empty(rows) if log_sum is None else log_sum
    losses = z.new_empty(rows)
    size = max(1, ENTRIES_A_PIECE // vocabulary)
    for start in range(0, rows, rows if z.is_cuda else size):
        part = slice(start, start + size if not z.is_cuda else rows)
        x, y = z[part], labels[part, None].long()
        losses[part] = (smoothing - 1) * x.gather(1, y)[:, 0]
        if smoothing:
            losses[part] -= smoothing * x.mean(1)
        if d is None:
            log_sums[part] = torch.logsumexp(x, 1)
            continue
        slope = None if cap is None else (x / cap).square_().neg_().add_(1)
        if log_sum is None:
            top = x.amax(1, keepdim=True)
            x.sub_(top).exp_()
            total = x.sum(1, keepdim=True)
            log_sums[part] = (top + total.log())[:, 0]
            x.mul_(d[part, None] / total)
        else:
            x.sub_(log_sum[part, None]).exp_().mul_(d[part, None])
        if smoothing:
            x.sub_(d[part, None] * (smoothing / vocabulary))
        x.scatter_add_(1, y, (smoothing - 1) * d[part, None])
        if slope is not None:
            x.mul_(slope)
    return losses.add_(log_sums), log_sums, None if d is None else z


def over_chunks(step, carry, rows, size, kinds):
    """Run a function over chunks of rows, one after the other.

    See `keras_efficient.backend.jax_chunks.over_chunks`.
    """
    count = len(rows[0])
    results = [
        rows[0].new_empty(count, *shape, dtype=getattr(torch, dtype))
        for dtype, shape in kinds
    ]
    for start in range(0, count, size):
        part = slice(start, start + size)
        carry, found = step(carry, [x[part] for x in rows])
        for y, x in zip(results, found, strict=True):
            y[part] = x
    return carry, results
