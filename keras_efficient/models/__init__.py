from keras_efficient.models.inv_auto_translator import (
    InvAutoTranslator as InvAutoTranslator,
)
from keras_efficient.models.invertible_autoencoder import (
    InvertibleAutoencoder as InvertibleAutoencoder,
)
from keras_efficient.models.invertible_unet import (
    InvertibleUNet as InvertibleUNet,
)
from keras_efficient.models.no_prop import NoProp as NoProp
from keras_efficient.models.patch_discriminator import (
    PatchDiscriminator as PatchDiscriminator,
)
from keras_efficient.models.rev_bifpn import RevBiFPN as RevBiFPN
from keras_efficient.models.rev_bifpn_variants import RevBiFPNS0 as RevBiFPNS0
from keras_efficient.models.rev_bifpn_variants import RevBiFPNS1 as RevBiFPNS1
from keras_efficient.models.rev_bifpn_variants import RevBiFPNS2 as RevBiFPNS2
from keras_efficient.models.rev_bifpn_variants import RevBiFPNS3 as RevBiFPNS3
from keras_efficient.models.rev_bifpn_variants import RevBiFPNS4 as RevBiFPNS4
from keras_efficient.models.rev_bifpn_variants import RevBiFPNS5 as RevBiFPNS5
from keras_efficient.models.rev_bifpn_variants import RevBiFPNS6 as RevBiFPNS6
from keras_efficient.models.rev_col import RevCol as RevCol
from keras_efficient.models.rev_col_variants import RevColBase as RevColBase
from keras_efficient.models.rev_col_variants import RevColHuge as RevColHuge
from keras_efficient.models.rev_col_variants import RevColLarge as RevColLarge
from keras_efficient.models.rev_col_variants import RevColSmall as RevColSmall
from keras_efficient.models.rev_col_variants import RevColTiny as RevColTiny
from keras_efficient.models.rev_col_variants import RevColXLarge as RevColXLarge
from keras_efficient.models.reversible_causal_lm import (
    ReversibleCausalLM as ReversibleCausalLM,
)
from keras_efficient.models.reversible_resnet import (
    ReversibleResNet as ReversibleResNet,
)
from keras_efficient.models.reversible_resnet_variants import (
    ReversibleResNet38 as ReversibleResNet38,
)
from keras_efficient.models.reversible_resnet_variants import (
    ReversibleResNet56 as ReversibleResNet56,
)
from keras_efficient.models.reversible_resnet_variants import (
    ReversibleResNet104 as ReversibleResNet104,
)
from keras_efficient.models.reversible_resnet_variants import (
    ReversibleResNet110 as ReversibleResNet110,
)
from keras_efficient.models.reversible_resnet_variants import (
    ReversibleResNet164 as ReversibleResNet164,
)
from keras_efficient.models.reversible_unet import (
    ReversibleUNet as ReversibleUNet,
)
from keras_efficient.models.reversible_vit import ReversibleViT as ReversibleViT
from keras_efficient.models.reversible_vit_variants import (
    ReversibleViTBase as ReversibleViTBase,
)
from keras_efficient.models.reversible_vit_variants import (
    ReversibleViTSmall as ReversibleViTSmall,
)
from keras_efficient.models.reversible_vit_variants import (
    ReversibleViTTiny as ReversibleViTTiny,
)
from keras_efficient.models.self_tuning import SelfTuning as SelfTuning
from keras_efficient.models.sequence_from_modules import (
    sequence_from_modules as sequence_from_modules,
)
