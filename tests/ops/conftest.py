import pytest


@pytest.fixture(autouse=True)
def full_compiler():
    """For all tests here: they compare what depends on rounding."""
