import keras
import numpy as np
from keras import layers

from keras_efficient.layers import ReversibleSequence
from keras_efficient.layers import ReversibleTransformerEncoder
from keras_efficient.models.application import check_pooling
from keras_efficient.models.application import finish
from keras_efficient.models.application import image_input
from keras_efficient.models.application import pool
from keras_efficient.models.position_embedding import PositionEmbedding


def ReversibleViT(
    num_layers,
    num_heads,
    hidden_dim,
    intermediate_dim,
    patch_size=16,
    dropout=0.0,
    drop_rate=0.0,
    layer_norm_epsilon=1e-6,
    pool_first=False,
    include_top=True,
    weights=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    reversible=True,
    normalization="pre",
    mixer="attention",
    name="reversible_vit",
):
    """Build a vision transformer whose activations do not grow with depth.

    ```
    x = dense(patches) + positions
    x1, x2 = x, x
    for each block:    x1 = x1 + attention(norm(x2))
                       x2 = x2 + feed_forward(norm(x1))
    features = norm(concatenate(x1, x2))
    ```

    Only the last two streams are kept for the backward pass, whatever the
    number of blocks, for a third more time; `reversible=False` builds the
    plain twin, which takes the same weights. Features are twice as wide as
    the blocks; the head sees their mean over the patches (there is no class
    token). Pixels are taken as they are: scale them first.

    This is the network of the published weights of Rev-ViT-S and B, which
    `tools/convert_weights.py revvit` converts. (A small example of the same
    authors takes the mean before the normalization: `pool_first=True`.)

    Args:
        num_layers: Integer, the number of blocks.
        num_heads: Integer, attention heads; has to divide `hidden_dim`.
        hidden_dim: Integer, the width of each of the two streams.
        intermediate_dim: Integer, units of the inner dense layer of a block.
        patch_size: Integer, the side of a patch in pixels. Defaults to `16`.
        dropout: Float in [0, 1), after attention and feed-forward layers.
            Defaults to `0.0`.
        drop_rate: Float in [0, 1), of stochastic depth at the last block,
            growing linearly up to there. (Each function of a block draws on
            its own; in the authors' code both are dropped together.) Defaults
            to `0.0`.
        layer_norm_epsilon: Float. Defaults to `1e-6`.
        pool_first: Boolean. With one vector an image, whether patches are
            pooled before they are normalized, instead of after. Defaults to
            `False`.
        include_top: Boolean. Whether to end in a dense layer. Defaults to
            `True`.
        weights: Path of a weights file, or `None` for random values. Defaults
            to `None`.
        input_shape: Tuple of two sizes in pixels, multiples of `patch_size`,
            and the number of channels, in the order of
            `keras.config.image_data_format()`. Defaults to `None`, 224 x 224
            in three channels.
        pooling: With `include_top=False`, `"avg"` or `"max"` for one vector
            an image, or `None` for one a patch. Defaults to `None`.
        classes: Integer. Defaults to `1000`.
        classifier_activation: Of the last layer, `None` for logits. Defaults
            to `"softmax"`.
        reversible: Boolean. Defaults to `True`.
        normalization: `"pre"`, `"post"` or `"peri"`, as in
            `keras_efficient.layers.ReversibleTransformerEncoder`. Defaults to
            `"pre"`.
        mixer: `"attention"`, or `"max"` for maxima over windows of patches,
            `keras_efficient.layers.PoolingMixer`. Defaults to `"attention"`.
        name: String. Defaults to `"reversible_vit"`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: an argument is outside its range.

    Example:

    ```python
    model = keras_efficient.models.ReversibleViT(
        num_layers=4, num_heads=2, hidden_dim=32, intermediate_dim=64,
        patch_size=4, input_shape=(32, 32, 3), classes=10,
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    ```

    Reference:
        - [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)
        - [Mangalam et al., 2022](https://arxiv.org/abs/2302.04869)
    """
    if pooling is not None:
        check_pooling(pooling)
    first = keras.config.image_data_format() == "channels_first"
    if input_shape is None:
        input_shape = (3, 224, 224) if first else (224, 224, 3)
    if None in input_shape:
        raise ValueError(
            "`input_shape` must be fixed: there is an embedding for each "
            f"patch. Received: input_shape={input_shape}"
        )
    channels = input_shape[0 if first else -1]
    inputs = image_input(input_shape, channels, patch_size)
    x = layers.Conv2D(hidden_dim, patch_size, patch_size, name="patches")(
        inputs
    )
    if first:
        x = layers.Permute((2, 3, 1))(x)
    grid = x.shape[1:3]
    patches = grid[0] * grid[1]
    x = layers.Reshape((patches, hidden_dim))(x)
    x = PositionEmbedding(patches, name="positions")(x)
    rates = np.linspace(0, drop_rate, num_layers).tolist()
    blocks = [
        ReversibleTransformerEncoder(
            intermediate_dim,
            num_heads,
            dropout=dropout,
            layer_norm_epsilon=layer_norm_epsilon,
            drop_rate=rate,
            normalization=normalization,
            mixer=mixer,
            grid=grid if mixer == "max" else None,
            name=f"block_{i}",
        )
        for i, rate in enumerate(rates)
    ]
    run = ReversibleSequence(blocks, reversible, name="blocks")
    x = layers.Concatenate(name="streams")(run([x, x]))
    norm = layers.LayerNormalization(epsilon=layer_norm_epsilon, name="norm")
    kind = "avg" if include_top else pooling

    def pooled(x):
        return pool(x, kind, 1, data_format="channels_last", name="pooling")

    if kind is None:
        x = norm(x)
    else:
        x = norm(pooled(x)) if pool_first else pooled(norm(x))
    if include_top:
        x = layers.Dense(
            classes,
            classifier_activation,
            dtype="float32",
            name="predictions",
        )(x)
    return finish(inputs, x, weights, name)
