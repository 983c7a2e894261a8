"""Build a backbone from the settings that describe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from nuclass.core.errors import UserError, closest
from nuclass.models.backbones.network import Backbone
from nuclass.models.backbones.registry import IMAGENET_MEAN, IMAGENET_STD, REGISTRY, BackboneSpec
from nuclass.models.backbones.weights import find_weights, is_file_setting, load_strict, misfit, weight_file

BACKBONE_KEYS = ("name", "kwargs", "config", "path", "input_px", "mean", "std", "pool", "weights")


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
        file = weight_file(folder) if folder else (Path(weights) if is_file_setting(weights) else None)
        if file is not None and load_weights:
            load_strict(net, file, spec.name)
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
    if load_weights and is_file_setting(weights):
        load_strict(net, Path(weights), architecture)
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
        raise misfit(folder, wrong)
    return net
