"""Language models as KerasHub knows them: its tokenizers, samplers, tasks.

`keras_efficient` does not import this module by itself, because it imports
KerasHub: `from keras_efficient.models import hub`. Import it before a saved
model of these classes is loaded.
"""

try:
    import keras_hub as _keras_hub  # noqa: F401
except ImportError as error:
    raise ImportError(
        "`keras_efficient.models.hub` needs KerasHub, the extra `nlp`: `pip "
        "install keras-efficient[nlp]`, or from a checkout `pip install -e "
        "'.[nlp]'`. Without it use `keras_efficient.models.ReversibleCausalLM`."
    ) from error

from keras_efficient.models.hub.reversible_backbone import (
    ReversibleBackbone as ReversibleBackbone,
)
from keras_efficient.models.hub.reversible_causal_lm import (
    ReversibleCausalLM as ReversibleCausalLM,
)
from keras_efficient.models.hub.to_reversible import (
    to_reversible as to_reversible,
)
