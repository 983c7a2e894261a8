"""Image backbones by name: how each is built, what it expects, where its weights are looked for.

A backbone is described by a small dictionary (``local.backbone`` or ``context.backbone`` of a model file):

``name``
    A registered one (``nuclass backbones`` lists them), with fixed arguments; ``timm:<architecture>``, any of timm;
    ``transformers:<folder or hub id>``, any vision model of transformers, or ``transformers`` with its ``config``;
    ``dinov3``, a network of the DINOv3 architecture built from ``config``; ``folder``, a vision model written by
    ``save_pretrained``, found at ``path``.
``kwargs`` / ``config``
    Arguments of the timm network / of the transformers configuration, there with ``model_type``.
``input_px``, ``mean``, ``std``
    Input side in pixels; normalisation of values in [0, 1]. Registered backbones know theirs, a folder may tell them in
    its ``preprocessor_config.json``; else ImageNet's.
``pool``
    ``native`` (what the network returns); ``center`` (networks of timm with a feature map): see :class:`CenterPool`;
    ``cls``, ``mean``, ``pooler`` (models of transformers).
``weights``
    ``required`` (the default where there are registered ones or a folder), ``none`` (random start), or a file.

The names below are imported when first used, so that reading the registry does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nuclass.core.backbone_settings import BACKBONE_KEYS

if TYPE_CHECKING:
    from nuclass.models.backbones.build import build_backbone, describe
    from nuclass.models.backbones.network import Backbone, CenterPool, count_parameters
    from nuclass.models.backbones.registry import IMAGENET_MEAN, IMAGENET_STD, REGISTRY, WEIGHT_FILES, BackboneSpec
    from nuclass.models.backbones.weights import WeightFile, check_sent, find_weights, identify, locate

_HOME = {
    "build_backbone": "build",
    "describe": "build",
    "Backbone": "network",
    "CenterPool": "network",
    "count_parameters": "network",
    "IMAGENET_MEAN": "registry",
    "IMAGENET_STD": "registry",
    "REGISTRY": "registry",
    "WEIGHT_FILES": "registry",
    "BackboneSpec": "registry",
    "WeightFile": "weights",
    "check_sent": "weights",
    "find_weights": "weights",
    "identify": "weights",
    "locate": "weights",
}

__all__ = [
    "BACKBONE_KEYS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "REGISTRY",
    "WEIGHT_FILES",
    "Backbone",
    "BackboneSpec",
    "CenterPool",
    "WeightFile",
    "build_backbone",
    "check_sent",
    "count_parameters",
    "describe",
    "find_weights",
    "identify",
    "locate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
