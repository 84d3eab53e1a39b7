"""Layers that people wrap: Keras' own, one row each. A new one is one row."""

import keras
import numpy as np
from keras import layers

from tests.layers import calls
from tests.layers.awkward import AWKWARD
from tests.layers.native import NATIVE
from tests.layers.row import BATCH
from tests.layers.row import MODES
from tests.layers.row import RESIZES
from tests.layers.row import Row
from tests.layers.row import normal

SEQUENCE = normal(BATCH, 3, 4)
IMAGE = normal(BATCH, 4, 4, 4)
VOLUME = normal(BATCH, 2, 2, 2, 4)
FRAMES = normal(BATCH, 2, 3, 3, 4)
TOKENS = np.array([[1, 2, 3], [4, 1, 0], [2, 0, 0], [3, 3, 1]], "int32")
PADDED = SEQUENCE * (TOKENS > 0)[..., None].astype("float32")
PICTURE = np.abs(normal(BATCH, 4, 4, 3)) % 1
SOUND = normal(BATCH, 64, 1)


def same(cls, *arguments, **options):
    return lambda: cls(*arguments, padding="same", **options)


def cells():
    return layers.RNN(
        layers.StackedRNNCells([layers.GRUCell(3), layers.LSTMCell(4)]),
        return_sequences=True,
    )


def normalization():
    layer = layers.Normalization()
    layer.adapt(normal(8, 4, seed=1) * 3 + 1)
    return layer


def perceptron():
    return keras.Sequential([layers.Dense(8, "gelu"), layers.Dense(4)])


def functional():
    inputs = keras.Input((4,))
    x = layers.Dense(4, "tanh")(inputs)
    return keras.Model(inputs, layers.Add()([x, layers.Dropout(0.5)(inputs)]))


KERAS = {
    # Dense
    "Dense": Row(lambda: layers.Dense(4, "tanh")),
    "EinsumDense": Row(
        lambda: layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d"),
        SEQUENCE,
    ),
    "Embedding": Row(lambda: layers.Embedding(5, 4), TOKENS, refused=RESIZES),
    "ReversibleEmbedding": Row(
        lambda: layers.ReversibleEmbedding(5, 4), TOKENS, refused=RESIZES
    ),
    "Sequential": Row(perceptron),
    "Model": Row(functional),
    "Identity": Row(layers.Identity),
    "Lambda": Row(lambda: layers.Lambda(keras.ops.sin)),
    "Masking": Row(layers.Masking, PADDED),
    # Activations
    "Activation": Row(lambda: layers.Activation("gelu")),
    "ReLU": Row(lambda: layers.ReLU(negative_slope=0.1)),
    "LeakyReLU": Row(layers.LeakyReLU),
    "PReLU": Row(lambda: layers.PReLU("uniform")),
    "ELU": Row(layers.ELU),
    "Softmax": Row(layers.Softmax),
    # Convolutions
    "Conv1D": Row(same(layers.Conv1D, 4, 3), SEQUENCE),
    "Conv2D": Row(same(layers.Conv2D, 4, 3), IMAGE),
    "Conv3D": Row(same(layers.Conv3D, 4, 2), VOLUME),
    "Conv1DTranspose": Row(same(layers.Conv1DTranspose, 4, 3), SEQUENCE),
    "Conv2DTranspose": Row(same(layers.Conv2DTranspose, 4, 3), IMAGE),
    "Conv3DTranspose": Row(same(layers.Conv3DTranspose, 4, 2), VOLUME),
    "DepthwiseConv1D": Row(same(layers.DepthwiseConv1D, 3), SEQUENCE),
    "DepthwiseConv2D": Row(same(layers.DepthwiseConv2D, 3), IMAGE),
    "SeparableConv1D": Row(same(layers.SeparableConv1D, 4, 3), SEQUENCE),
    "SeparableConv2D": Row(same(layers.SeparableConv2D, 4, 3), IMAGE),
    # Pooling
    "MaxPooling1D": Row(same(layers.MaxPooling1D, 2, 1), SEQUENCE),
    "MaxPooling2D": Row(same(layers.MaxPooling2D, 2, 1), IMAGE),
    "MaxPooling3D": Row(same(layers.MaxPooling3D, 2, 1), VOLUME),
    "AveragePooling1D": Row(same(layers.AveragePooling1D, 2, 1), SEQUENCE),
    "AveragePooling2D": Row(
        lambda: layers.AveragePooling2D(2), IMAGE, refused=RESIZES
    ),
    "AveragePooling3D": Row(
        lambda: layers.AveragePooling3D(2), VOLUME, refused=RESIZES
    ),
    "AdaptiveAveragePooling2D": Row(
        lambda: layers.AdaptiveAveragePooling2D(2), IMAGE, refused=RESIZES
    ),
    "AdaptiveMaxPooling1D": Row(
        lambda: layers.AdaptiveMaxPooling1D(2), SEQUENCE, refused=RESIZES
    ),
    "GlobalAveragePooling1D": Row(
        layers.GlobalAveragePooling1D, PADDED, layers.Masking, refused=RESIZES
    ),
    "GlobalAveragePooling2D": Row(
        layers.GlobalAveragePooling2D, IMAGE, refused=RESIZES
    ),
    "GlobalMaxPooling1D": Row(
        layers.GlobalMaxPooling1D, SEQUENCE, refused=RESIZES
    ),
    "GlobalMaxPooling2D": Row(
        layers.GlobalMaxPooling2D, IMAGE, refused=RESIZES
    ),
    # Normalization
    "BatchNormalization": Row(layers.BatchNormalization),
    "BatchNormalization masked": Row(
        layers.BatchNormalization, PADDED, layers.Masking
    ),
    "BatchNormalization image": Row(
        lambda: layers.BatchNormalization(momentum=0.5), IMAGE
    ),
    "LayerNormalization": Row(layers.LayerNormalization),
    "GroupNormalization": Row(lambda: layers.GroupNormalization(2), IMAGE),
    "RMSNormalization": Row(layers.RMSNormalization),
    "UnitNormalization": Row(layers.UnitNormalization),
    "SpectralNormalization": Row(
        lambda: layers.SpectralNormalization(layers.Dense(4)),
        untrained=("torch coupling",),
    ),
    "Normalization": Row(normalization),
    # Regularization
    "Dropout": Row(lambda: layers.Dropout(0.5)),
    "Dropout seeded": Row(lambda: layers.Dropout(0.5, seed=3)),
    "SpatialDropout1D": Row(lambda: layers.SpatialDropout1D(0.5), SEQUENCE),
    "SpatialDropout2D": Row(
        lambda: layers.SpatialDropout2D(0.5, seed=3), IMAGE
    ),
    "AlphaDropout": Row(lambda: layers.AlphaDropout(0.5)),
    "GaussianDropout": Row(lambda: layers.GaussianDropout(0.5, seed=3)),
    "GaussianNoise": Row(lambda: layers.GaussianNoise(0.5)),
    "ActivityRegularization": Row(
        lambda: layers.ActivityRegularization(l2=0.5)
    ),
    # Attention
    "Attention": Row(
        lambda: layers.Attention(dropout=0.5, seed=3),
        SEQUENCE,
        call=calls.queries,
        in_run=None,
    ),
    "AdditiveAttention": Row(
        layers.AdditiveAttention, SEQUENCE, call=calls.queries, in_run=None
    ),
    "MultiHeadAttention": Row(
        lambda: layers.MultiHeadAttention(2, 2, dropout=0.5),
        SEQUENCE,
        call=calls.attend,
        in_run=None,
    ),
    "GroupQueryAttention": Row(
        lambda: layers.GroupQueryAttention(2, 2, 1),
        SEQUENCE,
        call=calls.attend,
        in_run=None,
    ),
    "MultiHeadAttention masked": Row(
        lambda: layers.MultiHeadAttention(2, 2),
        TOKENS,
        lambda: layers.Embedding(5, 4, mask_zero=True),
        calls.attend_itself,
        in_run=None,
    ),
    # Recurrent layers
    "SimpleRNN": Row(
        lambda: layers.SimpleRNN(4, return_sequences=True), SEQUENCE
    ),
    "LSTM": Row(lambda: layers.LSTM(4), SEQUENCE, refused=RESIZES),
    "LSTM masked": Row(
        lambda: layers.LSTM(4, return_sequences=True), PADDED, layers.Masking
    ),
    "LSTM stateful": Row(
        lambda: layers.LSTM(4, return_sequences=True, stateful=True),
        SEQUENCE,
        untrained=("torch",),
    ),
    "LSTM with its state": Row(
        lambda: layers.LSTM(4, return_state=True), SEQUENCE, refused=RESIZES
    ),
    "GRU dropout": Row(
        lambda: layers.GRU(
            4, return_sequences=True, dropout=0.3, recurrent_dropout=0.3, seed=3
        ),
        SEQUENCE,
    ),
    "GRU stateful": Row(
        lambda: layers.GRU(4, stateful=True),
        SEQUENCE,
        untrained=("torch",),
        refused=RESIZES,
    ),
    "RNN of cells": Row(cells, SEQUENCE),
    "Bidirectional": Row(
        lambda: layers.Bidirectional(
            layers.GRU(2, return_sequences=True), merge_mode="concat"
        ),
        PADDED,
        layers.Masking,
    ),
    "ConvLSTM1D": Row(
        same(layers.ConvLSTM1D, 4, 2, return_sequences=True),
        IMAGE,
    ),
    "ConvLSTM2D": Row(same(layers.ConvLSTM2D, 2, 2), FRAMES, refused=RESIZES),
    "TimeDistributed": Row(
        lambda: layers.TimeDistributed(layers.Dense(4)), PADDED, layers.Masking
    ),
    # Merging
    "Add": Row(layers.Add, call=calls.both, in_run=None),
    "Subtract": Row(layers.Subtract, call=calls.both, in_run=None),
    "Multiply": Row(layers.Multiply, call=calls.both, in_run=None),
    "Average": Row(layers.Average, call=calls.both, in_run=None),
    "Maximum": Row(layers.Maximum, call=calls.both, in_run=None),
    "Minimum": Row(layers.Minimum, call=calls.both, in_run=None),
    "Concatenate": Row(layers.Concatenate, call=calls.both, in_run=None),
    "Dot": Row(lambda: layers.Dot(1), call=calls.both, in_run=None),
    # Shapes
    "Flatten": Row(layers.Flatten, SEQUENCE, refused=RESIZES),
    "Reshape": Row(lambda: layers.Reshape((2, 2)), refused=RESIZES),
    "Permute": Row(lambda: layers.Permute((2, 1, 3)), IMAGE),
    "RepeatVector": Row(lambda: layers.RepeatVector(2), refused=RESIZES),
    "Cropping1D": Row(lambda: layers.Cropping1D(1), SEQUENCE, refused=RESIZES),
    "Cropping2D": Row(lambda: layers.Cropping2D(1), IMAGE, refused=RESIZES),
    "ZeroPadding1D": Row(layers.ZeroPadding1D, SEQUENCE, refused=RESIZES),
    "ZeroPadding2D": Row(layers.ZeroPadding2D, IMAGE, refused=RESIZES),
    "UpSampling1D": Row(layers.UpSampling1D, SEQUENCE, refused=RESIZES),
    "UpSampling2D": Row(
        lambda: layers.UpSampling2D(interpolation="bilinear"),
        IMAGE,
        refused=RESIZES,
    ),
    # Images, sound, features
    "Rescaling": Row(lambda: layers.Rescaling(0.5, 0.1)),
    "Resizing": Row(lambda: layers.Resizing(3, 3), IMAGE, refused=RESIZES),
    "CenterCrop": Row(lambda: layers.CenterCrop(3, 3), IMAGE, refused=RESIZES),
    "RandomFlip": Row(lambda: layers.RandomFlip(seed=3), PICTURE),
    "RandomBrightness": Row(
        lambda: layers.RandomBrightness(0.5, (0, 1)),
        PICTURE,
        refused={  # `images += delta`
            f"torch {mode}": "writes into its input in place" for mode in MODES
        },
    ),
    "Discretization": Row(lambda: layers.Discretization([-1.0, 0.0, 1.0])),
    "CategoryEncoding": Row(
        lambda: layers.CategoryEncoding(5), TOKENS, refused=RESIZES
    ),
    "STFTSpectrogram": Row(
        lambda: layers.STFTSpectrogram(frame_length=16, fft_length=16),
        SOUND,
        refused=RESIZES,
    ),
}
TABLE = {**KERAS, **AWKWARD, **NATIVE}
