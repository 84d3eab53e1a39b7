import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from keras_efficient import chunk_loss
from keras_efficient import recompute
from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import memory_report
from keras_efficient.utils import optimizer_state_bytes
from keras_efficient.utils import saved_activation_bytes

BACKEND = keras.config.backend()
ROOT = Path(__file__).resolve().parents[2]


def batch(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def function():
    return keras.Sequential([layers.Dense(64, "gelu"), layers.Dense(32)])


def build(reversible=False, depth=4):
    blocks = [AdditiveCoupling(function(), function()) for _ in range(depth)]
    run = ReversibleSequence(blocks, reversible, name="run")
    model = keras.Sequential(
        [keras.Input((64,)), run, layers.Dense(8, name="head")]
    )
    model.compile("adam", "mse")
    return model


# A report takes long: it measures three models, and each layer of one.
BUDGET = 0.02


def network():
    x = inputs = keras.Input((16, 16, 4))
    for _ in range(6):
        y = layers.Conv2D(4, 3, padding="same")(x)
        x = layers.Add()([x, layers.ReLU()(layers.BatchNormalization()(y))])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def test_recompute_is_estimated_by_the_segments_that_it_chooses(capsys):
    model, x = network(), batch(64, 16, 16, 4)
    report = memory_report(model, x, optimizer="adam")
    lines = capsys.readouterr().out.splitlines()
    assert any("the other" in line for line in lines)
    lever, both = (
        report.usage[name] for name in ("recompute", "recompute and MicroAdam")
    )
    assert both.peak <= lever.peak < 0.7 * report.usage["as it is"].peak
    assert "call" not in vars(model)
    ours = memory_report(recompute(model), x, optimizer="adam", verbose=0)
    assert ours.usage["as it is"].peak == pytest.approx(lever.peak, rel=0.05)
    model.trainable = False
    frozen = memory_report(model, iter([(x, x)]), budget="1 GiB", verbose=0)
    usage = frozen.usage["as it is"]
    assert usage.batch == x.nbytes and usage.gradients == 0


def wide_network():
    x = inputs = keras.Input((64,))
    for _ in range(6):
        y = layers.Dense(64)(layers.Dense(256, "gelu")(x))
        x = layers.Add()([x, layers.LayerNormalization()(y)])
    return keras.Model(inputs, layers.Dense(3)(x))


def test_the_largest_batch_fits_where_gradients_rule_the_peak():
    model, budget = wide_network(), 16e6
    report = memory_report(model, 32, "adam", f"{budget}B", verbose=0)
    largest = report.usage["recompute"].largest_batch
    assert largest > report.usage["as it is"].largest_batch
    again = memory_report(recompute(model), largest, "adam", verbose=0)
    # From 32 examples to thousands: gradients of activations, of which there
    # is no trace at the peak of 32, are left out.
    assert 0.3 * budget < again.usage["as it is"].peak < 1.4 * budget


@functools.cache
def report_of(reversible):
    return memory_report(build(reversible), 256, budget=BUDGET, verbose=0)


def test_the_parts_are_those_of_the_model():
    model, report = build(), report_of(False)
    usage = report.usage["as it is"]
    size = 4 * model.count_params()
    assert usage.parameters == usage.gradients == size
    model.optimizer.build(model.trainable_variables)
    # All but the number of steps and the learning rate.
    state = optimizer_state_bytes(model.optimizer)
    assert 0 <= state - usage.optimizer_state <= 12
    assert usage.batch == 256 * 64 * 4
    for part in ("parameters", "gradients", "optimizer_state", "activations"):
        rows = [getattr(layer, part) for layer in report.layers]
        assert sum(rows) == getattr(usage, part), part
    assert usage.peak == sum(usage[:-2])
    if BACKEND != "jax":  # where the compiler is asked instead
        saved = saved_activation_bytes(model, batch(256, 64))
        assert usage.activations == saved


def test_a_row_for_each_sub_layer_of_a_plain_run_and_one_for_the_rest():
    report = report_of(False)
    names = [layer.name for layer in report.layers]
    assert names[-2:] == ["head", "(others)"]
    runs = [layer for layer in report.layers if layer.name.startswith("run/")]
    assert len(runs) == 16  # two Dense in each of two functions of 4 blocks
    kept = sum(layer.activations for layer in runs)
    assert kept > 0.8 * report.usage["as it is"].activations
    names = [x.name for x in report_of(True).layers]
    assert names == ["run", "head", "(others)"]


def test_the_lever_is_what_the_reversible_model_takes():
    lever, twin = report_of(False), report_of(True)
    assert "reversible" not in twin.usage
    ours, its = lever.usage["reversible"], twin.usage["as it is"]
    assert ours.activations < lever.usage["as it is"].activations / 4
    np.testing.assert_allclose(ours.activations, its.activations, rtol=0.02)
    np.testing.assert_allclose(ours.peak, its.peak, rtol=0.02)
    # Its blocks keep little as they are, once they are switched.
    assert "recompute" not in lever.usage


def test_the_largest_batch_fits_and_a_larger_one_does_not():
    for name in ("as it is", "reversible"):
        size = report_of(False).usage[name].largest_batch
        again = memory_report(build(), size, budget=BUDGET, verbose=0)
        peak = again.usage[name].peak / 2**30
        # On PyTorch, what waits for the garbage collector is alive, too: the
        # bytes are not quite linear in the batch.
        assert 0.85 * BUDGET < peak < 1.15 * BUDGET


def test_smaller_state_of_the_optimizer_is_a_lever():
    usage = report_of(False).usage
    state = {name: x.optimizer_state for name, x in usage.items()}
    assert state["SinkGD"] <= state["MicroAdam"] <= state["Adam8bit"]
    assert state["Adam8bit"] <= state["as it is"]


def test_a_model_that_trains_nothing():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    model.trainable = False
    usage = memory_report(model, 8, verbose=0).usage["as it is"]
    assert usage.parameters == 40 and usage.gradients == 0
    assert usage.peak >= 40 + usage.batch


def test_leaves_the_model_unchanged():
    model = build(depth=2)
    x = batch(16, 64)
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    y = keras.ops.convert_to_numpy(model(x))
    other = keras.optimizers.SGD(momentum=0.0)
    report = memory_report(model, x, optimizer=other, budget=1e-6, verbose=0)
    usage = report.usage["as it is"]
    assert usage.batch == x.nbytes and usage.optimizer_state == 0
    assert usage.largest_batch == 0  # nothing fits
    assert model.layers[0].reversible is False
    assert not any("call" in vars(layer) for layer in model.layers)
    for variable, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), old)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(x)), y)
    model.fit(x, batch(16, 8), verbose=0)


def test_prints_tables_and_draws(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    report = memory_report(build(depth=1), 16, budget=0.5)
    printed = capsys.readouterr().out
    assert "run/" in printed and "reversible" in printed
    assert "536.9 MB" in printed
    assert json.loads(json.dumps(report.as_dict()))["batch_size"] == 16
    assert report.plan.fits and "fits into the budget" in printed
    report.plot(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_says_what_it_needs():
    with pytest.raises(ValueError, match="'loose' is not built"):
        model = keras.Sequential([layers.Dense(1)], name="loose")
        memory_report(model, 16)
    open_ended = keras.Sequential(
        [keras.Input((None, 8)), layers.Dense(1)], name="text"
    )
    with pytest.raises(ValueError, match="no fixed shape.*inputs=16"):
        memory_report(open_ended, 16)
    memory_report(open_ended, batch(4, 6, 8), verbose=0)


def gpt2_and_inputs(depth):
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=32,
        num_layers=depth,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=8,
    )
    tokens = np.ones((64, 8), "int32")
    return backbone, {"token_ids": tokens, "padding_mask": tokens}


def test_a_backbone_of_keras_hub():
    report = memory_report(*gpt2_and_inputs(2), verbose=0)
    usage = report.usage["as it is"]
    assert usage.optimizer_state == 0
    names = [layer.name for layer in report.layers if layer.activations]
    assert {"transformer_layer_0", "transformer_layer_1"} <= set(names)


def test_the_lever_of_a_task_of_keras_hub_is_what_its_conversion_takes():
    backbone, inputs = gpt2_and_inputs(4)
    import keras_hub

    from keras_efficient.models import hub

    task = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    chunk_loss(task)  # as the converted one computes it
    plain = memory_report(task, inputs, verbose=0).usage
    converted = hub.ReversibleCausalLM(hub.to_reversible(backbone))
    ours = memory_report(converted, inputs, verbose=0).usage
    assert "to_reversible" not in ours
    lever, usage = plain["to_reversible"], ours["as it is"]
    assert lever.activations < 0.6 * plain["as it is"].activations
    assert abs(lever.activations / usage.activations - 1) < 0.02
    assert abs(lever.peak / usage.peak - 1) < 0.1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_predicts_the_peak_of_the_process():
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # The process gives back what it frees.
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
    }
    script = Path(__file__).with_name("predicted_peak.py")
    output = subprocess.run(
        [sys.executable, script],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name, (predicted, measured) in json.loads(output).items():
        assert abs(predicted / measured - 1) < 0.15, (name, output)
