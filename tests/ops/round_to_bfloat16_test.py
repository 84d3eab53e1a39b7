import keras
import numpy as np

from keras_efficient.ops.round_to_bfloat16 import round_to_bfloat16


def check(x):
    """Equal to the nearest of eight binary digits, and to a cast and back."""
    rounded = round_to_bfloat16(keras.ops.convert_to_tensor(x))
    assert keras.backend.standardize_dtype(rounded.dtype) == "float32"
    rounded = keras.ops.convert_to_numpy(rounded)
    mantissa, exponent = np.frexp(x)
    expected = np.ldexp(np.rint(mantissa * 2**8) / 2**8, exponent)
    np.testing.assert_array_equal(rounded, expected)
    cast = keras.ops.cast(keras.ops.convert_to_tensor(x), "bfloat16")
    cast = keras.ops.convert_to_numpy(keras.ops.cast(cast, "float32"))
    np.testing.assert_array_equal(rounded, cast)


def test_numbers_of_every_size():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000) * 2.0 ** rng.integers(-120, 120, size=1000)
    check(x.astype("float32"))


def test_ties_go_to_even_and_neighbours_to_the_nearest():
    ties = 1 + (np.arange(128) + 0.5) / 128
    ties = np.concatenate([ties, -ties]).astype("float32")
    infinity = np.float32(np.inf)
    check(ties)
    check(np.nextafter(ties, infinity))
    check(np.nextafter(ties, -infinity))


def test_what_bfloat16_holds_stays():
    x = np.array([0.0, 1.0, -1.0, 0.5, 255.0, -(2.0**100)], "float32")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(
            round_to_bfloat16(keras.ops.convert_to_tensor(x))
        ),
        x,
    )
