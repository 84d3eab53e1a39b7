import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_efficient.callbacks import TranslationGrid
from keras_efficient.layers import InvertibleConv2D
from keras_efficient.models import InvAutoTranslator
from keras_efficient.models import PatchDiscriminator


def images(n, height, width, channels=3, seed=0):
    random = np.random.default_rng(seed)
    shape = n, height, width, channels
    return random.uniform(-1, 1, shape).astype("float32")


def translator(channels=3):
    parts = [InvertibleConv2D(channels, 1)]
    judges = [PatchDiscriminator((2,)) for _ in "ab"]
    model = InvAutoTranslator(parts, *judges)
    model.compile(*(keras.optimizers.Adam(0.01) for _ in "ab"))
    return model


def read(path):
    return keras.utils.img_to_array(keras.utils.load_img(path))


def test_one_picture_an_epoch(tmp_path):
    """Also that it sees the weights of that epoch, on every backend."""
    model, a, b = translator(), images(4, 4, 6), images(2, 4, 4, seed=1)
    path = tmp_path / "new" / "epoch_{epoch:02d}.png"
    grid = TranslationGrid(path, a[:3], b)
    model.fit(a, b, batch_size=2, epochs=2, verbose=0, callbacks=[grid])
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["epoch_01.png", "epoch_02.png"]
    first, last = (read(path.parent / name) for name in names)
    assert first.shape == last.shape == (36, 24, 3)  # with edges of one pixel
    there = model.translate(a[:3])
    rows = [
        *(a[:3], there, model.translate(there, "A")),
        *(b, model.translate(b, "A")),
    ]
    for i, row in enumerate(rows):
        row = np.clip(ops.convert_to_numpy(row), -1, 1)
        for j, image in enumerate(row):
            top, left = 6 * i + 1, (image.shape[1] + 2) * j + 1
            part = last[top : top + 4, left : left + image.shape[1]]
            np.testing.assert_allclose(part, 127.5 * (image + 1), atol=0.51)
    assert (last[0] == 255).all() and (last[18:, 12:] == 255).all()
    assert np.abs(first - last)[7:11].max() > 0  # the model has learned
    np.testing.assert_array_equal(first[1:5], last[1:5])


def test_one_domain_and_another_range(tmp_path):
    model = translator(1)
    model.run_eagerly = True
    a = (images(2, 4, 4, 1) + 1) / 2
    path = tmp_path / "grid.png"
    grid = TranslationGrid(path, images_b=a, value_range=(0, 1))
    model.fit(a, a, verbose=0, callbacks=[grid])
    picture = read(path)[..., :1]
    assert picture.shape == (18, 12, 1)
    np.testing.assert_allclose(picture[1:5, 1:5], 255 * a[0], atol=0.51)


def test_bad_input_is_refused(monkeypatch):
    a = images(2, 4, 4)
    with pytest.raises(ValueError, match="`filepath` must end in '.png'"):
        TranslationGrid("grid.jpg", a)
    with pytest.raises(ValueError, match="needs images to translate"):
        TranslationGrid("grid.png")
    with pytest.raises(ValueError, match=r"`images_b` .* shape=\(2, 4, 4, 2\)"):
        TranslationGrid("grid.png", a, a[..., :2])
    with pytest.raises(ValueError, match="`value_range` must be"):
        TranslationGrid("grid.png", a, value_range=(1, 1))
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()])
    model.compile("sgd", "mse")
    grid = TranslationGrid("grid.png", a)
    with pytest.raises(TypeError, match="needs a model with a method `transl"):
        model.fit(a, a.reshape(2, -1), verbose=0, callbacks=[grid])
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="`pip install pillow`"):
        TranslationGrid("grid.png", a)
