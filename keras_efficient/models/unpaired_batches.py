"""Batches of two sets of images that have nothing to do with each other."""

import keras
import numpy as np
from keras import ops


class UnpairedBatches(keras.utils.PyDataset):
    """Give batches `(x, y)` of two arrays, of any lengths and in own orders.

    An epoch takes every item of the longer array once. The shorter one starts
    again as often as it has to, in a new order each time.
    """

    def __init__(self, x, y, batch_size=None, shuffle=True):
        super().__init__()
        self.arrays = [_to_numpy(x, "A"), _to_numpy(y, "B")]
        self.batch_size = batch_size or 32
        self.shuffle = shuffle
        self.size = max(map(len, self.arrays))
        self.on_epoch_end()

    @property
    def num_batches(self):
        return -(-self.size // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        part = slice(start, start + self.batch_size)
        return tuple(
            array[order[part]] for array, order in zip(self.arrays, self.orders)
        )

    def on_epoch_end(self):
        self.orders = [self._order(len(array)) for array in self.arrays]

    def _order(self, n):
        rounds = -(-self.size // n)
        draw = np.random.permutation if self.shuffle else np.arange
        return np.concatenate([draw(n) for _ in range(rounds)])[: self.size]


def is_array(x):
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _to_numpy(images, domain):
    if len(images.shape) != 4 or 0 in images.shape:
        raise ValueError(
            f"The images of domain {domain} must be an array of shape (batch, "
            "height, width, channels), or (batch, channels, height, width) "
            f"for 'channels_first'. Received: shape={tuple(images.shape)}"
        )
    return ops.convert_to_numpy(images)
