"""Our own small layers, one row each. A new one is one row."""

from tests.layers.own.adaptation import ADAPTATION
from tests.layers.own.binary import BINARY
from tests.layers.own.heads import HEADS
from tests.layers.own.normalization import NORMALIZATION
from tests.layers.own.weights import WEIGHTS

OWN = {**NORMALIZATION, **BINARY, **ADAPTATION, **WEIGHTS, **HEADS}
