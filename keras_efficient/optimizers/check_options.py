"""Errors about options that several optimizers have."""


def check_decays(optimizer, *names):
    for name in names:
        if not 0 <= getattr(optimizer, name) < 1:
            raise ValueError(
                f"`{name}` must be in [0, 1). "
                f"Received: {name}={getattr(optimizer, name)}"
            )


def check_choices(optimizer, **choices):
    for name, allowed in choices.items():
        if getattr(optimizer, name) not in allowed:
            raise ValueError(
                f"`{name}` must be one of {allowed}. "
                f"Received: {name}={getattr(optimizer, name)}"
            )


def check_bucket_size(optimizer):
    if optimizer.bucket_size < 2 or optimizer.bucket_size % 2:
        raise ValueError(
            "`bucket_size` must be even, because two codes share a byte. "
            f"Received: bucket_size={optimizer.bucket_size}"
        )
