import copy
import itertools
import pickle
from itertools import pairwise

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_efficient
from keras_efficient import recompute
from keras_efficient.autodiff.graph_calls import record_calls
from keras_efficient.conversion import cut_points
from keras_efficient.conversion import segments as running
from keras_efficient.conversion.layer_tree import all_layers
from keras_efficient.conversion.segments import is_recomputed
from keras_efficient.conversion.step_bytes import fixed_bytes
from keras_efficient.conversion.step_bytes import peak_of_step
from keras_efficient.utils import saved_activation_bytes
from tests.gradients import to_numpy
from tests.marks import first
from tests.marks import once
from tests.twins import batch

BATCH = 4


@pytest.fixture
def repeated(monkeypatch):
    """The layers that the engine was asked for: else a test shows nothing."""
    names, run = [], running.recompute

    def recompute(calls, known, store):
        names.append(len(known))
        return run(calls, known, store)

    monkeypatch.setattr(running, "recompute", recompute)
    return names


def convolution(x, width):
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Dropout(0.2)(layers.ReLU()(x))


def residual(depth=3, size=8):
    inputs = keras.Input((size, size, 4))
    x = layers.Conv2D(8, 3, padding="same", activity_regularizer="l2")(inputs)
    for _ in range(depth):
        x = layers.Add()([x, convolution(convolution(x, 8), 8)])
    x = layers.Dense(3, activation="softmax", name="probabilities")(
        layers.GlobalAveragePooling2D()(x)
    )
    return keras.Model(inputs, x), batch(BATCH, size, size, 4), 3


def u_net():
    inputs = keras.Input((None, None, 4))
    x, skips = inputs, []
    for width in (4, 6):
        x = convolution(convolution(x, width), width)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = convolution(convolution(x, 8), 8)
    for skip in reversed(skips):
        x = ops.concatenate([layers.UpSampling2D()(x), skip], axis=-1)
        x = convolution(convolution(x, skip.shape[-1]), skip.shape[-1])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1)(x))
    return keras.Model(inputs, x), batch(BATCH, 8, 8, 4), 3


def mobile_net():
    model = keras.applications.MobileNetV3Small(
        weights=None, input_shape=(32, 32, 3), classes=3
    )
    return model, 100 * batch(BATCH, 32, 32, 3), 3


class Block(layers.Layer):
    """What a call may do: drop, normalize, add losses, take a mask."""

    def __init__(self, width):
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.dense = layers.Dense(4 * width, "gelu", activity_regularizer="l2")
        self.dropout = layers.Dropout(0.2)
        self.out = layers.Dense(width)
        self.supports_masking = True

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build(shape)
        self.out.build((*shape[:-1], 4 * shape[-1]))

    def call(self, x, mask=None):
        y = self.out(self.dropout(self.dense(self.norm(x, mask=mask))))
        self.add_loss(0.01 * ops.sum(ops.square(y)))
        return x + (
            y if mask is None else y * ops.cast(mask, y.dtype)[..., None]
        )


class Subclassed(keras.Model):
    def __init__(self, depth=3, width=8):
        super().__init__()
        self.mask = layers.Masking()
        self.blocks = [Block(width) for _ in range(depth)]
        self.head = layers.Dense(3)

    def call(self, x, training=None):
        x = self.mask(x)
        for block in self.blocks:
            x = block(x)
        return self.head(ops.mean(x, axis=1))


class Unaware(Subclassed):
    """Keras does not tell it that it is in training."""

    def call(self, x):
        return super().call(x)


def unaware():
    model = Unaware()
    model(batch(BATCH, 5, 8))
    return model, batch(BATCH, 5, 8), 3


def subclassed(depth=3, frozen=True, rows=BATCH, width=8):
    model, x = Subclassed(depth, width), batch(rows, 5, width)
    x[0, 3:] = 0  # masked
    model(x)
    if frozen:
        model.blocks[1].trainable = False
        model.blocks[2].norm.trainable = False
    return model, x, 3


def language_model(name="GPT2", lora=True, **arguments):
    hub = pytest.importorskip("keras_hub").models
    backbone = getattr(hub, f"{name}Backbone")(
        vocabulary_size=11,
        num_layers=3,
        hidden_dim=8,
        intermediate_dim=12,
        **arguments,
    )
    x = {
        "token_ids": np.arange(24).reshape(4, 6) % 11,
        "padding_mask": np.arange(24).reshape(4, 6) < 21,
    }
    if name == "Bert":
        x["segment_ids"] = np.zeros_like(x["token_ids"])
        return hub.BertTextClassifier(backbone, 3, preprocessor=None), x, 3
    if lora:
        backbone.enable_lora(2)
    return getattr(hub, f"{name}CausalLM")(backbone, preprocessor=None), x, 11


def gpt2(**arguments):
    return language_model(num_heads=2, max_sequence_length=8, **arguments)


def llama():
    return language_model(
        "Llama", num_query_heads=2, num_key_value_heads=1, dropout=0.2
    )


def bert():
    return language_model(
        "Bert", num_heads=2, max_sequence_length=8, dtype="mixed_bfloat16"
    )


def train(build, *changes):
    """Values of all variables after a step between changes of the model."""
    keras.utils.set_random_seed(1)
    model, x, classes = build()
    # Without momentum the variables show all gradients.
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=model.layers[-1].name != "probabilities"
    )
    model.compile(keras.optimizers.SGD(0.1), loss)
    shape = x["token_ids"].shape if classes == 11 else (BATCH,)
    y = np.arange(np.prod(shape)).reshape(shape) % classes
    losses = []
    for change in changes:
        change(model)
        losses.append(np.ravel(model.train_on_batch(x, y))[0])
    return [np.array(losses), *to_numpy(model.variables)]


def check_steps(build, repeated, tolerance):
    plain = train(build, nothing)
    assert not repeated
    ours = train(build, recompute)
    assert len(repeated) > 1
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("build", [residual, u_net])
def test_steps_of_a_graph_equal_the_plain_ones(build, repeated, float64):
    check_steps(build, repeated, 1e-6)


@once
def test_steps_of_a_whole_network_equal_the_plain_ones(repeated, float64):
    check_steps(mobile_net, repeated, 1e-6)


@pytest.mark.parametrize(
    "build", first(subclassed, gpt2, unaware, llama, number=2)
)
def test_steps_of_blocks_equal_the_plain_ones(build, repeated):
    check_steps(build, repeated, 1e-5)


@once
def test_steps_in_mixed_precision_equal_the_plain_ones(repeated):
    check_steps(bert, repeated, 2e-2)


class Fine(layers.Layer):
    """Multiplies by one, unless its variable is rounded to 16 bits."""

    def build(self, shape):
        one = keras.initializers.Constant(1 + 2**-12)
        self.one = self.add_weight((), initializer=one, trainable=False)

    def call(self, x):
        return x * 2**12 * (self.one - 1)


class Scaled(layers.Layer):
    """A block with a variable of its own, and one that stays in float32."""

    def __init__(self):
        super().__init__()
        self.fine = Fine(dtype="float32")
        self.dense = layers.Dense(8, "gelu")

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.fine.build(shape)
        self.dense.build(shape)

    def call(self, x):
        assert self.scale.value.dtype == x.dtype  # cast as in the plain model
        return x + self.dense(self.scale * self.fine(x))


class Chain(keras.Model):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks
        self.head = layers.Dense(3)

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def scaled():
    with_policy = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(with_policy)
    try:
        blocks = [Scaled() for _ in range(3)]
    finally:
        keras.config.set_dtype_policy(previous)
    model, x = Chain(blocks), batch(BATCH, 8)
    model(x)
    return model, x, 3


def test_a_block_reads_its_own_variables_in_mixed_precision(repeated):
    check_steps(scaled, repeated, 2e-2)


def nothing(model):
    return model


def test_what_was_compiled_is_compiled_anew(repeated):
    plain = train(subclassed, nothing, nothing)
    assert not repeated
    ours = train(subclassed, nothing, recompute)
    assert len(repeated) >= 3
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_lora_may_come_afterwards(repeated):
    found = []
    for change in (nothing, recompute):
        assert not repeated
        found.append(
            train(
                lambda: gpt2(lora=False),
                lambda model: change(model).backbone.enable_lora(2),
            )
        )
    assert len(repeated) >= 3
    for plain, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def wide(depth):
    return subclassed(depth, frozen=False, rows=512, width=16)[:2]


def deep(depth):
    return residual(depth, size=32)[:2]


@pytest.mark.parametrize("build", [wide, deep])
def test_bytes_kept_fall(build):
    kept = []
    for depth in (4, 8):
        model, x = build(depth)
        plain = saved_activation_bytes(model, x)
        kept.append((plain, saved_activation_bytes(recompute(model), x)))
    assert kept[1][0] > 1.7 * kept[0][0]
    assert kept[1][0] > 3 * kept[1][1]


def replaced(model):
    """Names of layers, and of the model itself, whose `call` is hidden."""
    layers = all_layers(model)
    return [x.name for x in layers if is_recomputed(x)]


def test_the_model_stays_what_it_is(tmp_path):
    model, x, _ = gpt2(lora=False)
    plain, _, _ = gpt2(lora=False)
    plain.set_weights(model.get_weights())
    before = type(model), model.get_config().keys(), model.count_params()
    paths = [v.path for v in model.variables]
    assert recompute(model) is model
    assert len(replaced(model)) == 3
    after = type(model), model.get_config().keys(), model.count_params()
    assert before == after and paths == [v.path for v in model.variables]
    found = []
    for m in (plain, model):
        m.compile(sampler="greedy")
        prompt = {**x, "padding_mask": x["padding_mask"] * [1, 1, 1, 0, 0, 0]}
        found.append(m.generate(prompt, stop_token_ids=None)["token_ids"])
    np.testing.assert_array_equal(*to_numpy(found))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    expected = to_numpy(model.weights)
    for a, b in zip(expected, to_numpy(loaded.weights), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not replaced(loaded)
    recompute(model)  # once more
    assert len(replaced(model)) == 3
    recompute(model, segments=None)
    assert not replaced(model)


@once
def test_copies_and_clones_are_plain():
    model, x, _ = residual(2)
    recompute(model)
    assert len(replaced(model)) == 1
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        keras.models.clone_model(model),
    ):
        assert not replaced(other)
        assert other.count_params() == model.count_params()
    assert model.layers[-1].output is model.output  # no further node
    recompute(model, None)
    assert not replaced(model)


@once
def test_segments_are_chosen_by_name_layer_and_function():
    model = Subclassed()
    model.unused = Block(8)  # not built
    model(batch(BATCH, 5, 8))
    names = [block.name for block in model.blocks]
    recompute(model, [names[0], model.blocks[2]])
    assert replaced(model) == [names[0], names[2]]
    recompute(model, lambda layer: isinstance(layer, (Block, layers.Dense)))
    assert sorted(replaced(model)) == sorted([*names, model.head.name])
    recompute(model)
    assert replaced(model) == names


def quantized():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, "gelu")])
    model.add(layers.Dense(3))
    model.quantize("int8")
    for layer in model.layers:
        layer.enable_lora(2)
    return model, batch(BATCH, 8), 3


@once
def test_a_layer_that_is_quantized_may_be_a_segment(repeated):
    plain = train(quantized, nothing)
    assert not repeated
    ours = train(quantized, lambda model: recompute(model, model.layers))
    assert len(repeated) >= 2
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@once
def test_a_list_of_layers_is_one_segment(repeated, float64):
    def choose(model):
        found = model.layers
        recompute(model, [found[2:6], [found[7].name, found[8].name]])

    plain = train(residual, nothing)
    ours = train(residual, choose)
    assert len(repeated) == 2
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)


def unknown_structure():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Plain()
    model(batch(2, 3))
    return model


@once
def test_errors_say_what_to_do_and_leave_the_model_as_it_was():
    model = recompute(subclassed()[0])
    before = replaced(model)
    graph = residual()[0]
    small = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    a, b = model.blocks[:2]
    built_alone = Subclassed()
    built_alone.build((2, 3, 8))
    names = [x.name for x in graph.layers]
    with pytest.raises(TypeError, match="`inputs` must be a batch.*2.5"):
        recompute(model, inputs=2.5, budget=1)
    for error, text, arguments in (
        (TypeError, "must be a `keras.Model`", (layers.Dense(2),)),
        (TypeError, "a function of a layer", (model, 3)),
        (TypeError, "a function of a layer", (model, a)),
        (ValueError, "is not built.*on a batch", (Subclassed(),)),
        (ValueError, "is not built.*on a batch", (built_alone,)),
        (ValueError, "Nothing to gain.*segments", (unknown_structure(),)),
        (ValueError, "Nothing to gain", (small,)),
        (ValueError, "has no layer 'nothing'.*among", (model, ["nothing"])),
        (ValueError, "has no layers in it.*None", (model, [])),
        (ValueError, "true for no layer", (model, lambda layer: False)),
        (ValueError, "is in two segments", (model, [a, a.dense])),
        (ValueError, "is in two segments", (model, [a.dense, a])),
        (ValueError, "not in one functional", (model, [[a, b]])),
        (ValueError, "follow each other", (graph, [[names[2], names[9]]])),
    ):
        with pytest.raises(error, match=f"(?s){text}"):
            recompute(*arguments)
    assert replaced(model) == before
    assert not replaced(graph)


@once
@pytest.mark.parametrize("seed", range(4))
def test_cuts_are_the_best_there_are(seed):
    """Against all subsets of cuts of a random graph."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input((4,))
    made = [inputs]
    for _ in range(9):
        x = layers.Dense(int(rng.integers(1, 60)))(made[-1])
        if rng.random() < 0.4:
            x = layers.Concatenate()([x, made[rng.integers(len(made))]])
        made.append(x)
    graph = keras.Model(inputs, made[-1])
    recorded, nodes = record_calls(graph)

    def cost(parts):
        part_of = {
            id(x): i
            for i, part in enumerate(parts)
            for node in part
            for x in node.makes
        }
        crossing = {
            id(x): x.shape[-1]
            for i, part in enumerate(parts)
            for node in part
            for x in node.reads
            if part_of.get(id(x), i) < i
        }
        weights = [
            sum(x.shape[-1] for node in part for x in node.makes)
            for part in parts
        ]
        return sum(crossing.values()) + weights[-1] + max(weights[:-1])

    places = range(1, len(nodes))
    best = min(
        cost([nodes[a:b] for a, b in pairwise((0, *cuts, len(nodes)))])
        for count in places
        for cuts in itertools.combinations(places, count)
    )
    found = cut_points.cut(nodes, recorded.outputs)
    assert found is not None
    assert list(itertools.chain(*found)) == nodes
    assert cost(found) == best


def test_it_is_public():
    assert keras_efficient.recompute is recompute


def test_a_budget_is_met_with_little_work():
    """Between what all segments and what none of them need."""
    x = ops.convert_to_tensor(batch(64, 16, 16, 4))
    peaks = []
    model = residual(4, size=16)[0]
    model.compile("sgd", "mse")
    fixed, _ = fixed_bytes(model, model.optimizer)
    for segments in (None, "auto"):
        recompute(model, segments)
        peaks.append(peak_of_step(model, x, fixed))
    chosen = []
    for part in (0.1, 0.6):
        budget = peaks[1] + part * (peaks[0] - peaks[1])
        recompute(model, inputs=x, budget=f"{budget / 2**20} MiB")
        assert peak_of_step(model, x, fixed) <= budget
        segments = vars(model)["call"].segments
        chosen.append(sum(s.way is running.recomputed for s in segments))
    assert chosen[0] > chosen[1] > 0
    state = model.get_weights()
    message = "(?s)fits into.*The least is.*parameters.*Adam8bit"
    for budget in ("300kB", "1kB"):  # too little for a step, for parameters
        with pytest.raises(ValueError, match=message):
            recompute(model, inputs=x, budget=budget)
    assert vars(model)["call"].segments == segments
    for a, b in zip(state, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
