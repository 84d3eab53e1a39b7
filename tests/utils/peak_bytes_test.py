import sys

import numpy as np
import pytest

from keras_efficient.utils import peak_bytes

MB = 2**20

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="asks Linux"
)


def test_counts_what_is_freed_before_the_end():
    def function():
        np.ones(64 * MB, "uint8")
        np.ones(32 * MB, "uint8")

    assert 63 * MB < peak_bytes(function) < 68 * MB


def test_does_not_count_what_was_there():
    held = np.ones(64 * MB, "uint8")
    assert peak_bytes(lambda: held.sum(dtype="uint8")) < 4 * MB


def test_counts_again_what_an_earlier_call_has_freed():
    peaks = [peak_bytes(lambda: np.ones(16 * MB, "uint8")) for _ in range(3)]
    assert all(15 * MB < peak < 20 * MB for peak in peaks)
    assert peak_bytes(lambda: None) < 2 * MB
