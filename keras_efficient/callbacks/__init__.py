from keras_efficient.callbacks.auto_drop import AutoDrop as AutoDrop
from keras_efficient.callbacks.translation_grid import (
    TranslationGrid as TranslationGrid,
)
