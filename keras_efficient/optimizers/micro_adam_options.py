LARGEST_BLOCK = 2**15  # what the int16 index of an entry can count


def check_options(optimizer):
    """Raise an error if an argument of `MicroAdam` is outside its range."""
    optimizer._check_decays("beta_1", "beta_2")
    if not optimizer.epsilon > 0:
        raise ValueError(
            "`epsilon` must be positive: the second moment of most "
            f"entries is 0. Received: epsilon={optimizer.epsilon}"
        )
    densities = optimizer.density
    if not isinstance(densities, dict):
        densities = {None: densities}
    if not all(0 <= density <= 1 for density in densities.values()):
        raise ValueError(
            "`density` must be in [0, 1]: it is the part of each gradient "
            f"that enters the window. Received: density={optimizer.density}"
        )
    if not 0 <= optimizer.alpha <= 1:
        raise ValueError(
            "`alpha` must be in [0, 1]: it is the part of the error "
            f"feedback that is applied. Received: alpha={optimizer.alpha}"
        )
    if not 1 <= optimizer.window:
        raise ValueError(
            f"`window` must be at least 1. Received: window={optimizer.window}"
        )
    optimizer._check_bucket_size()
    if not 0 < optimizer.block_size <= LARGEST_BLOCK:
        raise ValueError(
            f"`block_size` must be from 1 to {LARGEST_BLOCK}, so that the "
            "place of an entry fits its int16 index. Received: "
            f"block_size={optimizer.block_size}"
        )
    if optimizer.block_size % optimizer.bucket_size:
        raise ValueError(
            "`block_size` must be a multiple of `bucket_size`. Received: "
            f"block_size={optimizer.block_size}, "
            f"bucket_size={optimizer.bucket_size}"
        )
    optimizer._check_choices(
        rounding=("stochastic", "nearest"),
        bias_correction=("window", "full"),
        value_dtype=("bfloat16", "float32"),
    )
