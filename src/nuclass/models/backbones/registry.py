"""The registered backbones: what each is, where its weights come from, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
INCEPTION_MEAN = INCEPTION_STD = (0.5, 0.5, 0.5)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class BackboneSpec:
    """What is known of a backbone without its weights.

    Attributes
    ----------
    library
        ``timm``, ``transformers`` or ``open_clip``.
    architecture
        The network's name in timm, the model type of transformers, or the network's name in open_clip.
    arguments
        Arguments of that network.
    input_px
        Side of the images it was trained on.
    feature_dim
        Width of the features.
    hub_id
        Owner and name on the hub, empty without weights; they lie in ``backbones/<hub_id>/``.
    parameters
        Number of parameters of the exact architecture, held by a test.
    licence, gated
        Terms of the weights, and whether they must be accepted before the download.
    mean, std
        Normalisation of values in [0, 1].
    files
        Names of the weight file, the first that is there counts.
    names
        How the file names its tensors: ``same`` as the network, ``clip``, ``coca`` or ``beit3``.
    left_out
        Patterns of the names in the file that are known and not loaded.
    multiple
        Other input sides that it takes: multiples of this; 0 = none.
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
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    files: tuple[str, ...] = WEIGHT_FILES
    names: str = "same"
    left_out: tuple[str, ...] = field(default=())
    multiple: int = 0


_UNI2_H = BackboneSpec(
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
    multiple=14,
)
_DINOV3 = BackboneSpec(
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
    multiple=16,
)
_PLIP = BackboneSpec(
    name="plip",
    library="transformers",
    architecture="clip_vision_model",
    arguments={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 32,
        "image_size": 224,
        "projection_dim": 512,
        "hidden_act": "quick_gelu",
    },
    input_px=224,
    feature_dim=512,
    hub_id="vinid/plip",
    parameters=87_849_216,
    licence="none stated; for research",
    gated=False,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    names="clip",
    left_out=("text_model.*", "text_projection.*", "logit_scale", "vision_model.embeddings.position_ids"),
    multiple=32,
)
_LOKI = BackboneSpec(
    name="loki",
    library="open_clip",
    architecture="coca_ViT-L-14",
    arguments={
        "image_size": 224,
        "patch_size": 14,
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "mlp_ratio": 4.0,
        "attn_pooler_heads": 8,
        "output_dim": 768,
    },
    input_px=224,
    feature_dim=768,
    hub_id="WangGuangyuLab/Loki",
    parameters=306_724_864,
    licence="BSD-3-Clause",
    gated=True,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    files=("checkpoint.pt",),
    names="coca",
    left_out=("text.*", "text_decoder.*", "logit_scale"),
)
_MUSK = BackboneSpec(
    name="musk",
    library="timm",
    architecture="beit3_large_patch16_224",
    arguments={"img_size": 384, "global_pool": "token", "dynamic_img_size": True},
    input_px=384,
    feature_dim=1024,
    hub_id="xiangjx/musk",
    parameters=303_936_512,
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    mean=INCEPTION_MEAN,
    std=INCEPTION_STD,
    files=("model.safetensors",),
    names="beit3",
    left_out=(
        "beit3.text_embed.*",
        "beit3.vision_embed.mask_token",
        "beit3.encoder.*.B.*",
        "vision_head.*",
        "language_head.*",
        "logit_scale",
    ),
    multiple=16,
)
_DEMO_CONTEXT = BackboneSpec(
    name="demo-context",
    library="transformers",
    architecture="dinov3_vit",
    arguments={
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_register_tokens": 4,
        "patch_size": 16,
        "image_size": 128,
        "layerscale_value": 0.1,
        "pos_embed_rescale": None,
    },
    input_px=128,
    feature_dim=128,
    hub_id="",
    parameters=761_472,
    licence="",
    gated=False,
    multiple=16,
)
_DEMO_LOCAL = BackboneSpec(
    name="demo-local",
    library="timm",
    architecture="resnet10t",
    arguments={"channels": [16, 40, 80, 160], "stem_width": 8},
    input_px=80,
    feature_dim=160,
    hub_id="",
    parameters=476_958,
    licence="",
    gated=False,
    multiple=16,
)

REGISTRY: dict[str, BackboneSpec] = {
    spec.name: spec for spec in (_UNI2_H, _DINOV3, _PLIP, _LOKI, _MUSK, _DEMO_CONTEXT, _DEMO_LOCAL)
}
