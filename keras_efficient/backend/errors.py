"""Messages that several backends raise."""

NO_SECOND_DERIVATIVE = (
    "A layer that recomputes its activations was differentiated twice, which "
    "it does not support here. For second derivatives build the layer with "
    "`reversible=False, exact=False`, which stores the activations, and leave "
    "out `Recompute`."
)
