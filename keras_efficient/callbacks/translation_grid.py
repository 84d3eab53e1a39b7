import pathlib

import keras
import numpy as np
from keras import ops


class TranslationGrid(keras.callbacks.Callback):
    """Write a picture of translated images after each epoch.

    Each column of the picture belongs to one image. The rows are: images of
    A, their translations to B, these translated back to A; then images of B,
    their translations to A, and back to B.

    It costs four calls of the generator on those images, and Pillow has to
    be installed.

    Args:
        filepath: String or path of a PNG file, which may contain the epoch,
            counted from 1 as in `keras.callbacks.ModelCheckpoint`:
            `"day_{epoch:02d}.png"`. Without it each epoch overwrites the
            picture of the one before. Folders are created.
        images_a: Array of images of A, of shape
            `(n, height, width, channels)`, or `(n, channels, height, width)`
            for `"channels_first"`, with 1, 3 or 4 channels. Defaults to
            `None`, no rows for A.
        images_b: The same for B.
        value_range: Tuple of two floats, the values of black and white.
            Defaults to `(-1, 1)`.

    Raises:
        ImportError: Pillow is not installed.
        TypeError: the model has no `translate`.
        ValueError: an argument is not of that kind.

    Example:

    ```python
    grid = keras_efficient.callbacks.TranslationGrid(
        "pictures/{epoch:02d}.png", day[:8], dusk[:8]
    )
    model.fit(day, dusk, epochs=10, callbacks=[grid])
    ```
    """

    def __init__(
        self, filepath, images_a=None, images_b=None, value_range=(-1, 1)
    ):
        super().__init__()
        _check_pillow()
        self.filepath = str(filepath)
        if pathlib.Path(self.filepath).suffix.lower() != ".png":
            raise ValueError(
                "`filepath` must end in '.png'. Received: "
                f"filepath={self.filepath}"
            )
        low, high = value_range
        if not low < high:
            raise ValueError(
                "`value_range` must be the value of black and a larger one, "
                f"of white. Received: value_range={value_range}"
            )
        self.value_range = value_range
        self.images = {
            domain: _checked(images, domain)
            for domain, images in (("a", images_a), ("b", images_b))
            if images is not None
        }
        if not self.images:
            raise ValueError(
                "`TranslationGrid` needs images to translate. Received: "
                "images_a=None, images_b=None. Pass at least one of them."
            )

    def on_train_begin(self, logs=None):
        if not callable(getattr(self.model, "translate", None)):
            raise TypeError(
                "`TranslationGrid` needs a model with a method `translate`, "
                "such as `keras_efficient.models.InvAutoTranslator`. "
                f"Received: model={self.model} (of type {type(self.model)})"
            )

    def on_epoch_end(self, epoch, logs=None):
        path = pathlib.Path(self.filepath.format(epoch=epoch + 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(
            path, self._draw(), data_format="channels_last", scale=False
        )

    def _draw(self):
        # The property: on JAX it fetches the values of the variables.
        translate = self.model.translate
        rows = []
        for domain, images in self.images.items():
            there, back = ("B", "A") if domain == "a" else ("A", "B")
            translated = translate(images, to=there)
            again = translate(translated, to=back)
            rows += map(self._row, (images, translated, again))
        width = max(row.shape[1] for row in rows)
        room = [((0, 0), (0, width - row.shape[1]), (0, 0)) for row in rows]
        rows = [np.pad(r, n, constant_values=255) for r, n in zip(rows, room)]
        return np.concatenate(rows)

    def _row(self, images):
        """Return images side by side, as bytes, with a white edge each."""
        images = ops.convert_to_numpy(images).astype("float32")
        if keras.config.image_data_format() == "channels_first":
            images = np.moveaxis(images, 1, -1)
        low, high = self.value_range
        images = np.clip((images - low) / (high - low), 0, 1)
        images = np.round(255 * images)
        edge = ((0, 0), (1, 1), (1, 1), (0, 0))
        images = np.pad(images, edge, constant_values=255)
        return np.concatenate(images, axis=1)


def _check_pillow():
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "`TranslationGrid` writes pictures with Pillow, which is not "
            "installed. Install it, for example by `pip install pillow`."
        ) from error


def _checked(images, domain):
    axis = 1 if keras.config.image_data_format() == "channels_first" else -1
    shape = tuple(images.shape)
    if len(shape) != 4 or 0 in shape or shape[axis] not in (1, 3, 4):
        raise ValueError(
            f"`images_{domain}` must be an array of images with 1, 3 or 4 "
            f"channels, in the order '{keras.config.image_data_format()}'. "
            f"Received: shape={shape}"
        )
    return ops.convert_to_numpy(images)
