"""Image backbones by name: how each is built, what it expects, where its weights are looked for.

A backbone is described by a small dictionary (``local.backbone`` or ``context.backbone`` of a model file):

``name``
    ``uni2-h`` or ``dinov3-vitl16`` (registered, with fixed arguments), ``timm:<architecture>`` (any timm network),
    ``dinov3`` (a network of the DINOv3 architecture built from ``config``), or ``folder`` (one written by
    ``save_pretrained``, found at ``path``).
``kwargs`` / ``config``
    Arguments of the timm network / of :class:`transformers.DINOv3ViTConfig`.
``input_px``, ``mean``, ``std``
    Input side in pixels; normalisation of values in [0, 1]. Registered backbones know theirs.
``pool``
    ``native`` (what the network returns), ``center`` (networks with a feature map only): see :class:`CenterPool`.
``weights``
    ``required`` (registered ones), ``none`` (random start), or a file.
"""

from __future__ import annotations

from nuclass.models.backbones.build import BACKBONE_KEYS, build_backbone
from nuclass.models.backbones.network import Backbone, CenterPool, count_parameters
from nuclass.models.backbones.registry import IMAGENET_MEAN, IMAGENET_STD, REGISTRY, BackboneSpec
from nuclass.models.backbones.weights import WEIGHT_FILES, find_weights

__all__ = [
    "BACKBONE_KEYS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "REGISTRY",
    "WEIGHT_FILES",
    "Backbone",
    "BackboneSpec",
    "CenterPool",
    "build_backbone",
    "count_parameters",
    "find_weights",
]
