"""Numbers that make no sense are refused by name, wherever they are given."""

import inspect
import math

import keras
import numpy as np
import pytest

from keras_efficient import callbacks
from keras_efficient import constraints
from keras_efficient import layers
from keras_efficient import models
from keras_efficient import optimizers
from keras_efficient.utils import SelectableDataset
from tests.marks import once

pytestmark = pytest.mark.quick
X, Y = np.ones((4, 2), "float32"), np.eye(2, dtype="float32")[[0, 1, 0, 1]]
HARD = np.zeros(4)


def dense():
    return keras.layers.Dense(4)


def dataset():
    return SelectableDataset(X, Y)


# What an object needs besides its defaults; a new one is one row.
OBJECTS = {
    layers.EvoNorm: {},
    layers.InstanceBatchNormalization: {},
    layers.AdaB2N: {"num_tasks": 2},
    layers.AlphaBN: {},
    layers.UnMixTNS: {},
    layers.PRepBN: {"decay_steps": 3},
    layers.SimplifiedLinearAttention: {"num_heads": 2, "grid": (2, 2)},
    layers.BatchChannelNormalization: {},
    layers.WeightStandardization: {"layer": dense},
    layers.Binarized: {"layer": dense},
    layers.GradientReversal: {"ramp_steps": 3},
    layers.Hydra: {"layer": dense},
    layers.EcoTTABlock: {"part": dense},
    layers.KeyValueBottleneck: {
        **{"num_codebooks": 2, "num_keys": 2},
        **{"value_dim": 2, "key_dim": 2},
    },
    layers.Hopfield: {"num_heads": 2, "key_dim": 2, "scaling": 1.0},
    layers.HopfieldLayer: {"num_heads": 2, "key_dim": 2, "quantity": 3},
    layers.HopfieldPooling: {"num_heads": 2, "key_dim": 2},
    layers.CompactRandomFeatures: {"units": 2},
    layers.PoolingMixer: {},
    layers.HourglassBlock: {"bottleneck_dim": 2},
    layers.ShannonDecay: {},
    layers.FixedClassifier: {"num_classes": 3},
    layers.SparseNM: {"layer": dense},
    layers.ElasticDense: {"units": 2},
    layers.ElasticConv2D: {"filters": 2},
    layers.SelfTuningDense: {"units": 2},
    layers.SelfTuningDropout: {},
    models.NoProp: {"blocks": lambda: [dense()], "num_classes": 2},
    models.SelfTuning: {"network": dense, "hyperparameters": {"decay": 0.0}},
    optimizers.LISA: {"blocks": ["a", "b"]},
    optimizers.SelectedAdam: {"reselect_at": 5},
    optimizers.Unfreezing: {
        **{"optimizer": "sgd", "groups": [["a"]], "interval": 2},
    },
    optimizers.AdaptiveBatch: {"optimizer": "sgd"},
    optimizers.AdaGradNorm: {},
    callbacks.ParallelAverage: {"switch_epoch": 1, "micro_batches": 2},
    callbacks.LearningCurve: {"horizon": 5, "target": 1.0, "limit": 1.0},
    callbacks.SelfDistillation: {"dataset": dataset},
    callbacks.InstanceLearningRate: {"dataset": dataset, "meta_data": (X, Y)},
    callbacks.AbilityCurriculum: {
        "dataset": dataset,
        "difficulties": HARD,
        "validation": (X, Y, HARD),
    },
    callbacks.SubnetworkSampling: {"choose": print},
    constraints.StaticSparsity: {"sparsity": 0.5},
    SelectableDataset: {"x": X, "targets": Y, "steps_per_epoch": 2},
}
# Made anew each time.
MADE = {"layer", "part", "dataset", "network", "blocks"}
# Keras' own, or told where the input is known.
ELSEWHERE = {"axis", "learning_rate", "seed"}


@once
@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
def test_numbers_that_make_no_sense_are_refused(cls):
    def made(**changed):
        given = {**OBJECTS[cls], **changed}
        return cls(
            **{
                k: v() if k in MADE and callable(v) else v
                for k, v in given.items()
            }
        )

    made()
    parameters = inspect.signature(cls.__init__).parameters.values()
    usual = {p.name: p.default for p in parameters if p.name != "self"}
    for name, value in {**usual, **OBJECTS[cls]}.items():
        is_number = isinstance(value, (int, float))
        if isinstance(value, bool) or not is_number or name in ELSEWHERE:
            continue
        wrong = [math.nan, math.inf, "many"]
        if isinstance(value, int):
            wrong += [0.5, -1, True]
        for number in wrong:
            with pytest.raises(ValueError, match=f"`{name}` must.*Received"):
                made(**{name: number})
