"""Configurations come back, by `from_config` and by name."""

import inspect

import keras
import pytest

from tests.optimizers.table import TABLE
from tests.optimizers.table import each_optimizer

# Another value than the default for each argument there is.
OTHER = {
    "learning_rate": 0.25,
    "beta_1": 0.8,
    "beta_2": 0.98,
    "adam_beta_1": 0.8,
    "adam_beta_2": 0.98,
    "adam_weight_decay": 0.02,
    "adam_lr_ratio": 0.5,
    "ns_steps": 4,
    "rms_rate": 0.3,
    "momentum": 0.7,
    "nesterov": True,
    "epsilon": 1e-5,
    "window": 7,
    "density": 0.02,
    "block_size": 1024,
    "bucket_size": 128,
    "min_size": 100,
    "weight_rounding": "nearest",
    "zero": True,
    "rounding": "nearest",
    "bias_correction": "full",
    "value_dtype": "float32",
    "select": "largest",
    "reselect_at": 7,
    "rank_penalty": 0.5,
    "rank": 8,
    "rho": 0.5,
    "error_feedback": "full",
    "alpha": 0.1,
    "sinkhorn_iterations": 3,
    "rest": "adam",
    "exclude_layers": ["output"],
    "exclude_embeddings": False,
    "weight_decay": 0.01,
    "clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 5,
    "loss_scale_factor": 2.0,
    "gradient_accumulation_steps": 3,
    "name": "other",
}


def arguments(cls):
    """All that the constructor takes; of three ways to clip, one is allowed."""
    names = [*inspect.signature(cls.__init__).parameters][1:]
    return {*names, *cls().get_config()} - {
        *("kwargs", "clipvalue", "global_clipnorm"),
    }


@each_optimizer
def test_round_trip(name):
    cls = TABLE[name].cls
    config = {key: OTHER[key] for key in arguments(cls)}
    default = cls().get_config()
    if "nesterov" in config:
        config["nesterov"] = not default["nesterov"]
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    for learning_rate in (0.25, schedule):
        optimizer = cls(**{**config, "learning_rate": learning_rate})
        actual = optimizer.get_config()
        for key in config.keys() - {"learning_rate"}:
            assert actual[key] == config[key] != default[key]
        assert cls.from_config({**actual}).get_config() == actual
        serialized = keras.optimizers.serialize(optimizer)
        restored = keras.optimizers.deserialize(serialized)
        assert type(restored) is cls
        assert restored.get_config() == actual


@each_optimizer
def test_found_by_name(name):
    cls = TABLE[name].cls
    expected = {**cls().get_config(), "name": None}
    snake_case = cls.__module__.rpartition(".")[2]
    names = [name, name.lower(), snake_case, f"keras_efficient>{name}"]
    for text in names:
        optimizer = keras.optimizers.get(text)
        assert type(optimizer) is cls
        assert {**optimizer.get_config(), "name": None} == expected
    (again,) = [
        keras.optimizers.get({"class_name": name, "config": {"min_size": 7}})
    ]
    assert again.min_size == 7


@each_optimizer
@pytest.mark.parametrize("option", ["beta_1", "beta_2", "epsilon"])
def test_what_is_out_of_range_is_refused(name, option):
    if option not in arguments(TABLE[name].cls):
        pytest.skip(f"has no {option}")
    for value in (-0.1, 1.0) if "beta" in option else (0.0, -1.0):
        with pytest.raises(ValueError, match=f"`{option}` must.*{value}"):
            TABLE[name].cls(**{option: value})
