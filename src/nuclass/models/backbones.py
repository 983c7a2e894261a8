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

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nuclass.core.errors import UserError, closest
from nuclass.core.log import get_logger

_log = get_logger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BACKBONE_KEYS = ("name", "kwargs", "config", "path", "input_px", "mean", "std", "pool", "weights")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


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


class CenterPool(nn.Module):
    """Pool a feature map to ``[weighted mean ; mean]``, the weights learned per place.

    A plain mean cannot tell the cell in the middle from its neighbours. The weights start as a Gaussian around
    the middle (standard deviation a fifth of the side) and are a softmax over the places, one set for all channels.
    Input (B, C, h, w), output (B, 2C).
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        y = (torch.arange(height) + 0.5) / height - 0.5
        x = (torch.arange(width) + 0.5) / width - 0.5
        self.weight_logits = nn.Parameter(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * 0.2**2))

    def forward(self, features: Tensor) -> Tensor:
        """Pool a feature map (B, C, h, w)."""
        weights = torch.softmax(self.weight_logits.flatten(), 0).view_as(self.weight_logits)
        return torch.cat([(features * weights).sum((2, 3)), features.mean((2, 3))], 1)


class Backbone(nn.Module):
    """A network with its normalisation: images in [0, 1], shape (B, 3, S, S), to features (B, D).

    Attributes
    ----------
    settings
        The dictionary it was built from, complete enough to build it again.
    feature_dim
        D.
    kind
        ``tokens`` (a vision transformer) or ``map`` (a convolutional network).
    prefix_tokens
        Class and register tokens before the patch tokens; 0 for ``map``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, settings: dict[str, Any], library: str, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.library = library
        self.input_px = int(settings["input_px"])
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.pool: nn.Module | None = None
        if library == "transformers":
            config: Any = net.config
            self.kind, self.prefix_tokens = "tokens", 1 + int(config.num_register_tokens)
            self.feature_dim = int(config.hidden_size)
        else:
            self._describe_timm(settings)

    def _describe_timm(self, settings: dict[str, Any]) -> None:
        net: Any = self.net
        is_vit = hasattr(net, "blocks") and hasattr(net, "num_prefix_tokens")
        self.kind, self.prefix_tokens = ("tokens", int(net.num_prefix_tokens)) if is_vit else ("map", 0)
        self.feature_dim = int(net.num_features)
        if settings.get("pool", "native") == "center":
            if is_vit:
                raise UserError(
                    "This backbone has no feature map to pool",
                    where="backbone.pool",
                    found=f"pool: center with {settings['name']}",
                    expected="pool: native for a vision transformer",
                    fix="remove the key 'pool'",
                )
            reduction = net.feature_info[-1]["reduction"]
            side = -(-self.input_px // reduction)
            self.pool = CenterPool(side, side)
            self.feature_dim *= 2

    def normalise(self, images: Tensor) -> Tensor:
        """Return ``(images - mean) / std`` in float32; ``images`` in [0, 1]."""
        return (images.float() - self.mean) / self.std

    def checkpoint_gradients(self) -> None:
        """Keep no activations inside the blocks; compute them again in the backward pass."""
        net: Any = self.net
        if self.library == "transformers":
            enable = getattr(net, "activation_checkpointing_enable", net.gradient_checkpointing_enable)
            enable()
        else:
            net.set_grad_checkpointing(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of ``images`` (B, 3, S, S) in [0, 1] as (B, D)."""
        return self.pool_tokens(self.spatial(images))

    def spatial(self, images: Tensor) -> Tensor:
        """Return what is pooled: tokens (B, T, D) after the final norm, or the last feature map (B, C, h, w)."""
        if images.shape[-1] != self.input_px or images.shape[-2] != self.input_px:
            raise ValueError(f"the backbone expects {self.input_px} px, got {tuple(images.shape[-2:])}")
        pixels = self.normalise(images)
        if self.library == "transformers":
            return self.net(pixel_values=pixels).last_hidden_state
        return self.net.forward_features(pixels)  # type: ignore[operator]

    def pool_tokens(self, spatial: Tensor) -> Tensor:
        """Return (B, D) from the output of :meth:`spatial`."""
        if self.library == "transformers":
            return spatial[:, 0]
        if self.pool is not None:
            return self.pool(spatial)
        return self.net.forward_head(spatial, pre_logits=True)  # type: ignore[operator]


def build_backbone(settings: dict[str, Any], *, load_weights: bool = True, root: Path | None = None) -> Backbone:
    """Build the backbone that ``settings`` describe (module docstring).

    Parameters
    ----------
    settings
        The ``backbone`` section of a model file.
    load_weights
        False builds the architecture alone, for a checkpoint to fill.
    root
        Folder that holds ``backbones/``; the working folder by default.

    Raises
    ------
    UserError
        For an unknown name or key, and for weights that are missing or do not fit.
    """
    unknown = sorted(set(settings) - set(BACKBONE_KEYS))
    if unknown:
        raise UserError(
            "A backbone has an unknown key",
            where=f"backbone.{unknown[0]}",
            found=unknown[0],
            expected=", ".join(BACKBONE_KEYS),
            fix=f"correct or remove the key.{closest(unknown[0], list(BACKBONE_KEYS))}",
        )
    name = str(settings.get("name", ""))
    if name in REGISTRY:
        return _build_registered(REGISTRY[name], dict(settings), load_weights, root or Path.cwd())
    if name.startswith("timm:"):
        return _build_timm(dict(settings), load_weights)
    if name == "dinov3":
        return _build_dinov3(dict(settings))
    if name == "folder":
        return _build_folder(dict(settings), load_weights)
    valid = [*REGISTRY, "timm:<architecture>", "dinov3", "folder"]
    raise UserError(
        "There is no backbone of this name",
        where="backbone.name",
        found=name or "nothing",
        expected=", ".join(valid),
        fix=f"take a name of the list.{closest(name, valid)}",
    )


def _build_registered(spec: BackboneSpec, settings: dict[str, Any], load_weights: bool, root: Path) -> Backbone:
    settings.setdefault("input_px", spec.input_px)
    mean, std = tuple(settings.get("mean", spec.mean)), tuple(settings.get("std", spec.std))
    weights = settings.get("weights", "required")
    folder = None
    if load_weights and weights == "required":
        folder = find_weights(spec, root)
    if spec.library == "transformers":
        net = _dinov3_from_folder(folder) if folder else _dinov3_from_config(spec.arguments)
    else:
        net = _timm_network(spec.architecture, spec.arguments)
        file = _weight_file(folder) if folder else (Path(weights) if _is_file_setting(weights) else None)
        if file is not None and load_weights:
            _load_strict(net, file, spec.name)
    return Backbone(net, settings, spec.library, mean, std)


def _build_timm(settings: dict[str, Any], load_weights: bool) -> Backbone:
    import timm

    architecture = str(settings["name"]).split(":", 1)[1]
    if not timm.is_model(architecture):
        raise UserError(
            "timm has no network of this name",
            where="backbone.name",
            found=architecture,
            fix=f"choose one of timm.list_models().{closest(architecture, timm.list_models())}",
        )
    if "input_px" not in settings:
        raise UserError(
            "A timm backbone needs its input size", where="backbone.input_px", fix="add 'input_px', e.g. 224"
        )
    net = _timm_network(architecture, settings.get("kwargs") or {})
    weights = settings.get("weights", "none")
    if load_weights and _is_file_setting(weights):
        _load_strict(net, Path(weights), architecture)
    mean, std = tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))
    return Backbone(net, settings, "timm", mean, std)


def _build_dinov3(settings: dict[str, Any]) -> Backbone:
    settings.setdefault("input_px", 224)
    net = _dinov3_from_config(settings.get("config") or {})
    mean, std = tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))
    return Backbone(net, settings, "transformers", mean, std)


def _build_folder(settings: dict[str, Any], load_weights: bool) -> Backbone:
    folder = Path(str(settings.get("path", "")))
    if not (folder / "config.json").is_file():
        raise UserError(
            "A backbone's folder is not there or has no config.json",
            where=folder,
            expected="config.json and model.safetensors, as save_pretrained writes them",
            fix="check 'path' in the model file, or make the folder first (rule pretrain_context)",
        )
    settings.setdefault("input_px", 224)
    if load_weights:
        net = _dinov3_from_folder(folder)
    else:
        from transformers import DINOv3ViTConfig

        net = _dinov3_from_config(DINOv3ViTConfig.from_pretrained(folder).to_dict())
    mean, std = tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))
    return Backbone(net, settings, "transformers", mean, std)


def _timm_network(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    import timm

    kwargs = dict(arguments)
    if kwargs.get("mlp_layer") == "SwiGLUPacked":
        kwargs["mlp_layer"] = timm.layers.SwiGLUPacked
    if kwargs.get("act_layer") == "SiLU":
        kwargs["act_layer"] = nn.SiLU
    return timm.create_model(architecture, pretrained=False, num_classes=0, **kwargs)


def _dinov3_from_config(config: dict[str, Any]) -> nn.Module:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    try:
        return DINOv3ViTModel(DINOv3ViTConfig(**config))
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(
            "The DINOv3 configuration is not valid",
            where="backbone.config",
            found=str(error),
            fix="see the arguments of transformers.DINOv3ViTConfig",
        ) from error


def _dinov3_from_folder(folder: Path) -> nn.Module:
    from transformers import DINOv3ViTModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        loaded: Any = DINOv3ViTModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        net, info = loaded
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            "A backbone's weights cannot be read",
            where=folder,
            found=str(error).splitlines()[0],
            expected="config.json and model.safetensors of a DINOv3 vision transformer",
            fix="download the folder again",
        ) from error
    wrong = sorted([*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])])
    if wrong:
        raise _misfit(folder, wrong)
    return net


def find_weights(spec: BackboneSpec, root: Path) -> Path:
    """Return the folder with the weights of a registered backbone.

    Looked for in ``$NUCLASS_BACKBONES/<hub id>/``, then in ``<root>/backbones/<hub id>/``.

    Raises
    ------
    UserError
        When no folder has a weight file, with the command that downloads it.
    """
    bases = [Path(os.environ["NUCLASS_BACKBONES"])] if os.environ.get("NUCLASS_BACKBONES") else []
    bases.append(root / "backbones")
    folders = [base / spec.hub_id for base in bases]
    for folder in folders:
        if any((folder / name).is_file() for name in WEIGHT_FILES):
            return folder
    gate = "accept the licence on the model's page, then " if spec.gated else ""
    raise UserError(
        f"The weights of {spec.name} are missing",
        where=" or ".join(str(folder) for folder in folders),
        expected=" or ".join(WEIGHT_FILES),
        fix=f"{gate}run: hf download {spec.hub_id} --local-dir {folders[-1]}   "
        "(or set NUCLASS_BACKBONES to the folder that holds your backbones)",
    )


def _weight_file(folder: Path) -> Path:
    return next(folder / name for name in WEIGHT_FILES if (folder / name).is_file())


def _is_file_setting(weights: object) -> bool:
    return weights not in (None, "none", "required")


def _load_strict(net: nn.Module, file: Path, name: str) -> None:
    if not file.is_file():
        raise UserError(f"The weights of {name} are missing", where=file, fix="check the key 'weights' of the backbone")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if wrong:
        raise _misfit(file, wrong)
    net.load_state_dict(state, strict=True)
    _log.info("%s: weights from %s", name, file)


def _misfit(file: Path, wrong: list[str]) -> UserError:
    return UserError(
        "A backbone's weights do not fit its architecture",
        where=file,
        found=f"{len(wrong)} tensors missing, unknown or of another shape, the first: {wrong[0]}",
        expected="the file of exactly this network",
        fix="check the backbone's name against the file",
    )


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
