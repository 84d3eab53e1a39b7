"""Files of bfloat16 weights: those of Keras, without float32 on the way."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient import save_in_16_bits

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="Keras does so itself there"
)
ENTRIES = 256 * 8


def network(seed):
    keras.utils.set_random_seed(seed)
    inner = keras.Sequential(
        [layers.Dense(8), layers.BatchNormalization(dtype="float32")]
    )
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(256, 8, dtype="bfloat16"),
            inner,
        ]
    )


def most_bytes(model, fn):
    """The most bytes of tensors that a call makes."""
    from keras_efficient.backend.torch_memory import count_alive

    with count_alive([v.value for v in model.weights]) as storages:
        fn()
    return storages.peak


@pytest.mark.parametrize("name", ["a.weights.h5", "a.weights.json", "a.keras"])
def test_files_are_those_of_keras(name, tmp_path):
    model, paths = network(0), [tmp_path / "with", tmp_path / "without"]
    for path, save in zip(paths, (True, False)):
        path.mkdir()
        assert save_in_16_bits(model, save) is model
        options = {"max_shard_size": 5e-6} if name.endswith("json") else {}
        if name.endswith("keras"):
            model.save(path / name)
        else:
            model.save_weights(path / name, **options)
    with_it, without = (sorted(path.iterdir()) for path in paths)
    assert [file.name for file in with_it] == [file.name for file in without]
    if name.endswith("h5"):
        assert with_it[0].read_bytes() == without[0].read_bytes()
    read = network(1)
    for path, save in zip(paths, (False, True)):
        save_in_16_bits(read, save).load_weights(path / name)
        for a, b in zip(model.weights, read.weights, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a.numpy(), b.numpy())
            b.assign(b * 0)


def test_nothing_is_widened(tmp_path):
    path, model = tmp_path / "a.weights.h5", network(0)
    for call in (model.save_weights, model.load_weights):
        peaks = {}
        for save in (False, True):
            save_in_16_bits(model, save)
            peaks[save] = most_bytes(model, lambda: call(path))
        # What was read is a tensor of 16 bits; written, there is none.
        assert peaks[True] < 3 * ENTRIES < 4 * ENTRIES <= peaks[False]


def test_a_layer_is_no_model():
    with pytest.raises(TypeError, match="keras.Model.*Received"):
        save_in_16_bits(layers.Dense(1))
