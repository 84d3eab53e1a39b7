from keras_efficient import callbacks as callbacks
from keras_efficient import config as config
from keras_efficient import kernels as kernels
from keras_efficient import layers as layers
from keras_efficient import ops as ops
from keras_efficient import optimizers as optimizers
from keras_efficient import utils as utils
from keras_efficient.version import __version__ as __version__
