def check_options(owner, checks):
    """Raise an error for the first option that is outside its range.

    `checks` are tuples of a name, whether the value is right, and what was
    expected.
    """
    for name, is_right, expected in checks:
        if not is_right:
            raise ValueError(
                f"`{name}` must be {expected}. "
                f"Received: {name}={getattr(owner, name)}"
            )
