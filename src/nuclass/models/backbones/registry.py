"""The registered backbones: what each is, where its weights come from, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneSpec:
    """A registered backbone.

    Attributes
    ----------
    library
        ``timm`` or ``transformers``.
    architecture
        The timm network's name, or the transformers model type.
    hub_id
        Owner and name on the hub; weights lie in ``backbones/<hub_id>/``.
    parameters
        Number of parameters of the exact architecture, held by a test.
    """

    name: str
    library: str
    architecture: str
    arguments: dict[str, Any]
    input_px: int
    feature_dim: int
    hub_id: str
    parameters: int
    licence: str
    gated: bool
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


REGISTRY: dict[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        BackboneSpec(
            name="uni2-h",
            library="timm",
            architecture="vit_giant_patch14_224",
            arguments={
                "img_size": 224,
                "patch_size": 14,
                "depth": 24,
                "num_heads": 24,
                "init_values": 1e-5,
                "embed_dim": 1536,
                "mlp_ratio": 2.66667 * 2,
                "no_embed_class": True,
                "mlp_layer": "SwiGLUPacked",
                "act_layer": "SiLU",
                "reg_tokens": 8,
                "dynamic_img_size": True,
            },
            input_px=224,
            feature_dim=1536,
            hub_id="MahmoodLab/UNI2-h",
            parameters=681_394_176,
            licence="CC-BY-NC-ND-4.0",
            gated=True,
        ),
        BackboneSpec(
            name="dinov3-vitl16",
            library="transformers",
            architecture="dinov3_vit",
            arguments={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "num_register_tokens": 4,
                "patch_size": 16,
                "image_size": 224,
            },
            input_px=512,
            feature_dim=1024,
            hub_id="facebook/dinov3-vitl16-pretrain-lvd1689m",
            parameters=303_129_600,
            licence="DINOv3 License",
            gated=True,
        ),
    )
}
