"""`tools/convert_weights.py` on state dicts that these tests make."""

import argparse
import importlib
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_efficient import models
from tests.gradients import to_numpy

if keras.config.backend() != "torch":  # nor import it
    pytest.skip("the same on each backend", allow_module_level=True)
torch = pytest.importorskip("torch")
from tests.tools import authors  # noqa: E402

TOOLS = Path(__file__).resolve().parents[2] / "tools"

# What is called, and with which arguments after weights and images.
NETWORKS = {
    "revbifpn": (
        "RevBiFPN",
        authors.rev_bifpn,
        ((48, 16, 14, 12), (8, 6, 10, 4), 20, 4, 1, 5),
    ),
    "revbifpn of two scales": (
        "RevBiFPN",
        authors.rev_bifpn,
        ((64, 6), (5, 7), 9, 1, 2, 3),
    ),
    "revcol": (
        "RevCol",
        authors.rev_col,
        ((4, 6, 8, 10), (1, 2, 1, 2), 3, False, False, 5),
    ),
    "revcol huge, supervised": (
        "RevCol",
        authors.rev_col,
        ((4, 6, 8), (1, 1, 2), 4, True, True, 7, 5),
    ),
    "revcol of many classes": (
        "RevCol",
        authors.rev_col,
        ((4, 6), (1, 1), 8, False, True, 1001),
    ),
    "revvit": ("ReversibleViT", authors.rev_vit, (3, 2, 128, 24, 8, 5)),
}
SIZE = 32


def make(name):
    """Return the family, a state dict, images and what comes out for them."""
    _, network, arguments = NETWORKS[name]
    weights = authors.Weights()
    x = torch.rand(2, 3, SIZE, SIZE, generator=weights.generator) - 0.5
    with torch.no_grad():
        outputs = network(weights, x, *arguments)
    return name.split()[0], weights, x, [y.numpy() for y in outputs]


@pytest.fixture
def convert(monkeypatch, tmp_path, capsys):
    """Return a function from what is saved to the command that is printed."""
    monkeypatch.syspath_prepend(TOOLS)
    tool = importlib.import_module("convert_weights")

    def run(family, saved, *options):
        path = tmp_path / "file.pth"
        if not isinstance(saved, bytes):
            torch.save(saved, path)
        else:
            path.write_bytes(saved)
        out = str(tmp_path / "out.weights.h5")
        tool.main([family, str(path), out, *options])
        return capsys.readouterr().out

    yield run
    for module in [m for m in sys.modules if m.split(".")[0] == "published"]:
        del sys.modules[module]
    sys.modules.pop("convert_weights", None)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_authors(name, convert):
    family, weights, x, expected = make(name)
    printed = convert(family, dict(weights))
    scope = {"keras_efficient": sys.modules["keras_efficient"]}
    exec(printed, scope)
    model = scope["model"]
    for layer in model.layers:  # logits instead of probabilities
        if isinstance(layer, keras.layers.Activation) and (
            layer.name.startswith(("predictions", "class_"))
        ):
            layer.activation = keras.activations.linear
    if family == "revvit":
        model.get_layer("predictions").activation = keras.activations.linear
    found = model(np.moveaxis(x.numpy(), 1, -1))
    if isinstance(found, dict):
        found = [found[key] for key in sorted(found)]  # classes, then images
    for a, b in zip(to_numpy(keras.tree.flatten(found)), expected, strict=True):
        b = np.moveaxis(b, 1, -1) if b.ndim == 4 else b
        assert np.ptp(b) > 0.01
        np.testing.assert_allclose(a, b, atol=1e-5 * np.ptp(b))


def test_arguments_are_those_of_the_network(convert):
    family, weights, *_ = make("revbifpn")
    printed = convert(
        family, {"state_dict": {"module." + k: v for k, v in weights.items()}}
    )
    assert "channels=(48, 16, 14, 12)" in printed
    assert "head_channels=(8, 6, 10, 4)" in printed
    assert "extra_silos=1" in printed and "features=20" in printed
    assert "layout='reference'" in printed


class Nasty:
    """Calls a function when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_in_the_file_is_run(convert, tmp_path):
    _, weights, *_ = make("revvit")
    trap = tmp_path / "trap"
    saved = {
        "config": argparse.Namespace(a=[Nasty(trap)]),
        "input": input,
        "other": Nasty(trap),
        "model_state": dict(weights),
    }
    assert "hidden_dim=128" in convert("revvit", saved, "--num-heads", "2")
    assert not trap.exists()


def test_half_precision_and_parts_of_storages(convert):
    _, weights, *_ = make("revvit")
    key = "head.projection.weight"
    whole = torch.stack([weights[key], weights[key]], -1)
    saved = {k: x.bfloat16() if "norm" in k else x for k, x in weights.items()}
    saved[key] = whole[..., 1]  # every other number of a storage
    saved["norm.bias"] = torch.nn.Parameter(weights["norm.bias"].half())
    convert("revvit", saved)


def test_what_is_wrong_is_named(convert, tmp_path):
    family, weights, *_ = make("revcol")
    state = dict(weights)
    torch.save(state, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()

    def refused(match, saved, family=family, *options):
        with pytest.raises(SystemExit, match=match):
            convert(family, saved, *options)

    key = "subnet1.level2.blocks.0.pwconv1.weight"
    missing = {k: x for k, x in state.items() if k != key}
    refused(f"1 tensors of RevCol are missing: {key}", missing)
    refused(
        "1 tensors of RevCol are unknown: extra", {**state, "extra": state[key]}
    )
    refused(f"'{key}' has to fill", {**state, key: state[key][:-1]})
    refused(f"'{key}' has to fill", {**state, key: state[key].T})
    bad = state[key].clone()
    bad[0, 0] = float("nan")
    refused(f"'{key}' holds NaN", {**state, key: bad})
    refused("no state dict of RevBiFPN", state, "revbifpn")
    refused("no state dict of ReversibleViT.*has", {"model": {}}, "revvit")
    refused("holds no state dict", [1, 2])
    refused("has no state_dict_ema", state, family, "--key", "state_dict_ema")
    refused("must be a whole file", whole[: len(whole) // 2])
    refused("must be a whole file", b"no zip archive")
    with pytest.raises(SystemExit):
        convert(family, state, "--num-heads")


def test_a_scale_of_zero_is_told(convert):
    family, weights, *_ = make("revcol")
    weights["subnet1.alpha2"][0, 3] = 0
    with pytest.warns(UserWarning, match="1 scales are exactly 0"):
        convert(family, dict(weights))


def test_published_sizes_have_the_keys_of_the_tool(monkeypatch):
    """All variables of the published networks have a key each."""
    monkeypatch.syspath_prepend(TOOLS)
    tool = importlib.import_module("convert_weights")
    for name, family in (
        ("RevBiFPNS0", "revbifpn"),
        ("RevColTiny", "revcol"),
        ("ReversibleViTSmall", "revvit"),
    ):
        with keras.StatelessScope(initialize_variables=False):
            model = getattr(models, name)()
        places = [*tool.FAMILIES[family].weights(model)]
        assert len(places) == len(model.weights)
        assert len({key for _, key, _ in places}) == len(places)
        assert len({id(v) for v, _, _ in places}) == len(places)
    keras.utils.clear_session()
