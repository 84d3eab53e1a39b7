from keras import ops

# The slope at zero is as large as it can be, so that five steps are enough.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(x, steps=5, coefficients=COEFFICIENTS):
    """Bring the singular values of a matrix near 1, by products alone.

    ```
    X = X / ||X||
    repeat:  A = X X^T        X = a X + (b A + c A A) X
    ```

    Singular values end between 0.7 and 1.2, and not at 1, which does Muon no
    harm. With the coefficients (1.5, -0.5, 0) they end at 1, but slowly: 15
    steps bring those that are a thirtieth of the norm.

    Args:
        x: float32 tensor of shape `(n, m)`.
        steps: Integer. Defaults to `5`.
        coefficients: Tuple (a, b, c).

    Returns:
        float32 tensor of the shape of x.

    Reference:
        - [Jordan et al., 2024](https://kellerjordan.github.io/posts/muon/)
    """
    a, b, c = coefficients
    is_tall = x.shape[0] > x.shape[1]
    x = ops.transpose(x) if is_tall else x
    x = x / (ops.sqrt(ops.sum(ops.square(x))) + 1e-7)
    for _ in range(steps):
        gram = ops.matmul(x, ops.transpose(x))
        polynomial = b * gram
        if c:
            polynomial = polynomial + c * ops.matmul(gram, gram)
        x = a * x + ops.matmul(polynomial, x)
    return ops.transpose(x) if is_tall else x
