"""The networks of the authors of RevBiFPN, RevCol and Rev-ViT, by key.

A module has the `NAME` of our builder, `arguments(state, num_heads)`, those of
the builder, from the keys and shapes of a state dict, and `weights(model)`: for
each variable its key, and how the array is turned.
"""
