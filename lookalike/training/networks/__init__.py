"""Networks: what sees, and what turns what is seen into an embedding.

::

    registry.py    build() by name; defaults(), names(), nearest(), option_types(), unpublished()
    sketch.py      a network of shapes without numbers, to see what goes with it
    base.py        Network: feature maps, logits, stages; channel_shuffle
    alexnet.py  vgg.py  resnet.py  shufflenet.py  small.py      ours, with the published parameter names
    external.py    torchvision's and timm's, and MobileNetV2 with TensorFlow's padding
    weights.py     files, URLs and bundles into a network
    pooling.py     feature maps → one vector
    heads.py       one vector → one of another length
    views.py       the mean over slightly moved views
    embedding.py   EmbeddingNetwork: all of it; what is frozen, and what learns how fast; Serving
"""

from __future__ import annotations

from lookalike.training.networks.base import Network, channel_shuffle
from lookalike.training.networks.embedding import EmbeddingNetwork, Serving
from lookalike.training.networks.pooling import pooling
from lookalike.training.networks.registry import build, defaults, names, nearest, option_types, unpublished
from lookalike.training.networks.sketch import Sketch, sketch
from lookalike.training.networks.views import Views, small_views
from lookalike.training.networks.weights import Report, missing_weights, read_weights, weights_file

__all__ = [
    "EmbeddingNetwork",
    "Network",
    "Report",
    "Serving",
    "Sketch",
    "Views",
    "build",
    "channel_shuffle",
    "defaults",
    "missing_weights",
    "names",
    "nearest",
    "option_types",
    "pooling",
    "read_weights",
    "sketch",
    "small_views",
    "unpublished",
    "weights_file",
]
