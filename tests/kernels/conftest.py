import pytest


@pytest.fixture(autouse=True)
def quick_compiler():
    """Not here: what is compared depends on how the compiler rounds."""
