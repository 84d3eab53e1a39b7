"""A reversible run, position by position, with a cache of keys and values."""

from keras import ops

from keras_efficient.autodiff.capture import accepted


def cached_run(run, streams, cache, index):
    """Run the blocks on the next positions of a sequence.

    The wiring is that of the blocks themselves, `couple`; only attention is
    called in another way.

    Args:
        run: A built `keras_efficient.layers.ReversibleSequence` of blocks
            with one sub-layer each that takes `cache` and `index` and then
            returns its output and the new cache.
        streams: Tuple of tensors of shape `(batch, positions, width)`.
        cache: Tensor of shape `(batch, blocks, 2, length, heads, head size)`.
        index: Integer or integer tensor, the place of the first position.

    Returns:
        `(streams, cache)`.
    """
    caches = []
    for block, old in zip(run.couplings(), ops.unstack(cache, axis=1)):

        def evaluate(layer, x, block=block, old=old):
            known = accepted(layer, {"cache": old, "index": index})
            y = layer(x, **known, training=False)
            if known:
                y, new = y
                caches.append(new)
            return block.standardize(y)

        streams = block.couple(streams, evaluate)
    return streams, ops.stack(caches, axis=1)
