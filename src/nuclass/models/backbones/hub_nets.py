"""Vision models of transformers, built from a configuration and loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nuclass.core.errors import UserError, closest
from nuclass.models.backbones.forms import ClipForm, Form, hub_form
from nuclass.models.backbones.network import dinov3_form
from nuclass.models.backbones.states import State, misfit, own_copies
from nuclass.models.backbones.timm_nets import not_a_multiple

CLIP_TYPES = ("clip", "clip_vision_model")
OTHER_HEADS = (
    "classifier.*",
    "cls_classifier.*",
    "distillation_classifier.*",
    "decoder.*",
    "text_model.*",
    "text_projection.*",
    "logit_scale",
    "logit_bias",
    "position_ids",
    "*.position_ids",
)
_FORGOTTEN = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")
_FREE = ("image_size",)


def make_config(config: dict[str, Any], model_type: str | None = None, *, strict: bool = True) -> Any:
    """Return the transformers configuration of a ``config`` section, which names its ``model_type``.

    ``strict`` refuses keys that the model type does not have: transformers itself keeps these without a word.

    Raises
    ------
    UserError
        For a model type that transformers does not know, and for keys and values it does not take.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig, DINOv3ViTConfig

    values = {key: value for key, value in config.items() if key != "model_type"}
    kind = model_type or str(config.get("model_type", ""))
    if kind not in CONFIG_MAPPING:
        raise UserError(
            "transformers has no model of this type",
            where="backbone.config.model_type",
            found=kind or "nothing",
            expected="the model_type of a vision model, e.g. vit, dinov2, dinov3_vit, siglip_vision_model",
            fix=f"correct the key.{closest(kind, list(CONFIG_MAPPING))}",
        )
    is_dinov3 = kind == "dinov3_vit"
    try:
        made = DINOv3ViTConfig(**values) if is_dinov3 else AutoConfig.for_model(kind, **values)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(
            "The DINOv3 configuration is not valid" if is_dinov3 else f"The configuration of {kind} is not valid",
            where="backbone.config",
            found=str(error),
            fix=f"see the arguments of transformers.{CONFIG_MAPPING[kind].__name__}",
        ) from error
    if strict:
        _check_config(values, CONFIG_MAPPING[kind](), kind)
    return made


def _check_config(values: dict[str, Any], usual: Any, kind: str) -> None:
    """Raise for a key that a model type does not have, and for heads that do not divide the width."""
    for key in values:
        if not hasattr(usual, key):
            raise UserError(
                f"The configuration of {kind} has an unknown key",
                where=f"backbone.config.{key}",
                found=key,
                expected=f"an argument of transformers.{type(usual).__name__}",
                fix=f"correct or remove the key.{closest(key, sorted(usual.to_dict()))}",
            )
    width, heads = (values.get(key, getattr(usual, key, None)) for key in ("hidden_size", "num_attention_heads"))
    if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads:
        raise UserError(
            "The heads of a transformers model do not divide its width",
            where="backbone.config.num_attention_heads",
            found=f"hidden_size {width}, num_attention_heads {heads}",
            expected="a width that is a multiple of the number of heads",
            fix="change one of the two",
        )


def check_side(config: Any, input_px: int, name: str) -> None:
    """Raise for an input side that the patches do not fill: a rest at the border would not be seen."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and input_px % patch:
        raise not_a_multiple(input_px, patch, name)


def folder_config(folder: Path) -> Any:
    """Return the configuration that ``config.json`` of a folder holds, of the image half of a model with two.

    Raises
    ------
    UserError
        Where it is not there or names no model that transformers knows by itself.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(
            "A backbone's folder is not there or has no config.json",
            where=folder,
            expected="config.json and model.safetensors, as save_pretrained writes them",
            fix="check 'path' in the model file, or make the folder first (rule pretrain_context)",
        )
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "A backbone's config.json is not one that transformers knows",
            where=folder / "config.json",
            found=str(error).splitlines()[0],
            expected="a config.json with a known model_type",
            fix="download the folder again, or update transformers",
        ) from error
    return image_half(config)


def image_half(config: Any) -> Any:
    """Return the configuration of the image half of a model of images and texts, else the same."""
    if not hasattr(config, "vision_config"):
        return config
    half = config.vision_config
    if config.model_type == "clip":
        half.projection_dim = config.projection_dim
    return half


def plain(config: Any) -> dict[str, Any]:
    """Return a configuration as a dictionary that :func:`make_config` takes, without paths and versions."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    kept = {key: value for key, value in values.items() if key not in _FORGOTTEN}
    return {**kept, "model_type": config.model_type}


def check_registered(config: Any, arguments: dict[str, Any], folder: Path) -> None:
    """Raise where a folder's configuration is another than the registered one."""
    for key, value in arguments.items():
        found = getattr(config, key, None)
        if key not in _FREE and found != value:
            raise UserError(
                "The config.json beside a backbone's weights is of another architecture",
                where=folder / "config.json",
                found=f"{key}: {found}",
                expected=f"{key}: {value}",
                fix="check the backbone's name against the folder",
            )


def new_network(config: Any, pool: str) -> nn.Module:
    """Return a network with random weights."""
    kind, options = _class_of(config, pool)
    net: nn.Module = kind(config, **options)
    return net


def load_network(config: Any, pool: str, state: State, file: Path) -> nn.Module:
    """Return a network with the tensors of a file, all of them; ``state`` is emptied on the way.

    Raises
    ------
    UserError
        When a tensor is missing, unknown or of another shape.
    """
    kind, options = _class_of(config, pool)
    with _quiet():
        try:
            net, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=own_copies(state),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise misfit(file, [str(error).splitlines()[0]]) from error
    mismatched = [str(item[0]) if isinstance(item, tuple | list) else str(item) for item in info["mismatched_keys"]]
    wrong = sorted([*info["missing_keys"], *info["unexpected_keys"], *mismatched])
    if wrong:
        raise misfit(file, wrong)
    loaded: nn.Module = net.train()
    return loaded


def form_of(net: Any, input_px: int, pool: str) -> Form:
    """Return how a transformers network gives its features."""
    if hasattr(net, "visual_projection"):
        if pool != "native":
            raise UserError(
                "The image half of a CLIP model gives its image embedding",
                where="backbone.pool",
                found=f"pool: {pool} with {type(net).__name__}",
                expected="native",
                fix="remove the key 'pool'",
            )
        config = net.vision_model.config
        return ClipForm(
            "tokens", 1, config.hidden_size, config.projection_dim, "vision_model.encoder.layers", "layer_norm1"
        )
    if net.config.model_type == "dinov3_vit" and pool in ("native", "cls"):
        return dinov3_form(net)
    return hub_form(net, input_px, pool)


def _class_of(config: Any, pool: str) -> tuple[Any, dict[str, Any]]:
    import inspect

    from transformers import MODEL_MAPPING, CLIPVisionModelWithProjection

    if config.model_type in CLIP_TYPES:
        return CLIPVisionModelWithProjection, {}
    if type(config) not in MODEL_MAPPING:
        raise UserError(
            "transformers builds no network of this type alone",
            where="backbone.config.model_type",
            found=config.model_type,
            expected="the model_type of a vision model, e.g. vit, dinov2, dinov3_vit, siglip_vision_model",
            fix="take another backbone",
        )
    kind: Any = MODEL_MAPPING[type(config)]
    if getattr(kind, "main_input_name", "") != "pixel_values":
        raise UserError(
            "A transformers model is no vision model",
            where="backbone.config.model_type",
            found=config.model_type,
            expected="a model that takes pixel_values",
            fix="take another backbone",
        )
    has_pooler = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return kind, {"add_pooling_layer": pool == "pooler"} if has_pooler else {}


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """Return ``input_px``, ``mean`` and ``std`` of a folder's ``preprocessor_config.json``, as far as it tells them."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return {}
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            "A preprocessor_config.json is damaged", where=file, found=str(error), fix="download the folder again"
        ) from error
    found: dict[str, Any] = {}
    side = _side(told.get("crop_size")) if told.get("do_center_crop") else None
    side = side or _side(told.get("size"))
    if side:
        found["input_px"] = side
    for key, name in (("mean", "image_mean"), ("std", "image_std")):
        if isinstance(told.get(name), list):
            found[key] = tuple(float(value) for value in told[name])
    return found


def _side(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    if isinstance(size, dict):
        return next((int(size[key]) for key in ("height", "shortest_edge") if size.get(key)), None)
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own bars and reports off the screen; what matters in them is raised."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
