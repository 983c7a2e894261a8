"""Build a backbone from the settings that describe it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nuclass.core.backbone_settings import backbone_faults
from nuclass.core.errors import UserError, closest
from nuclass.core.log import get_logger
from nuclass.models.backbones import hub_nets, timm_nets
from nuclass.models.backbones.forms import timm_form
from nuclass.models.backbones.hub import HubSilentError, download
from nuclass.models.backbones.network import Backbone, count_parameters
from nuclass.models.backbones.registry import IMAGENET_MEAN, IMAGENET_STD, REGISTRY, WEIGHT_FILES, BackboneSpec
from nuclass.models.backbones.states import State, fill, read_state, take
from nuclass.models.backbones.weights import (
    WeightFile,
    check_sent,
    download_command,
    identify,
    locate,
    missing,
    own_folders,
    weight_file_in,
)

_log = get_logger(__name__)

_HUB_POOLS = ("native", "cls", "mean", "pooler")
_TIMM_POOLS = ("native", "center")


def build_backbone(settings: dict[str, Any], *, load_weights: bool = True, root: Path | None = None) -> Backbone:
    """Build the backbone that ``settings`` describe (docstring of the package).

    Parameters
    ----------
    settings
        The ``backbone`` section of a model file, or :attr:`Backbone.settings` of a backbone built before.
    load_weights
        False builds the architecture alone, for a checkpoint to fill.
    root
        Folder that holds ``backbones/``; the working folder by default.

    Raises
    ------
    UserError
        For an unknown name or key, and for weights that are missing, damaged or do not fit.
    """
    _check(settings)
    name = str(settings.get("name", ""))
    root = root or Path.cwd()
    if name in REGISTRY:
        return _build_registered(REGISTRY[name], dict(settings), load_weights, root)
    if name.startswith("timm:"):
        return _build_timm(dict(settings), load_weights)
    if name == "dinov3":
        return _build_dinov3(dict(settings), load_weights)
    if name in ("folder", "transformers") or name.startswith("transformers:"):
        return _build_hub(dict(settings), load_weights, root)
    valid = [*REGISTRY, "timm:<architecture>", "transformers:<folder or hub id>", "dinov3", "folder"]
    raise UserError(
        "There is no backbone of this name",
        where="backbone.name",
        found=name or "nothing",
        expected=", ".join(valid),
        fix=f"take a name of the list.{closest(name, valid)}",
    )


def describe(settings: dict[str, Any], *, root: Path | None = None) -> BackboneSpec:
    """Return what is known of a backbone without its weights and without memory for them.

    Input side and normalisation are those of ``settings`` where they have them. Parameters as of
    :func:`build_backbone`.
    """
    with torch.device("meta"):
        backbone = build_backbone(settings, load_weights=False, root=root)
    name = str(settings["name"])
    mean = tuple(backbone.settings.get("mean", IMAGENET_MEAN))
    std = tuple(backbone.settings.get("std", IMAGENET_STD))
    if name in REGISTRY:
        spec = REGISTRY[name]
        mean, std = tuple(settings.get("mean", spec.mean)), tuple(settings.get("std", spec.std))
        return replace(spec, input_px=backbone.input_px, mean=mean, std=std)
    source = name.partition(":")[2]
    is_hub = backbone.library == "transformers"
    return BackboneSpec(
        name=name,
        library=backbone.library,
        architecture=str(backbone.settings["config"].get("model_type", "dinov3_vit")) if is_hub else source,
        arguments=dict(backbone.settings.get("config" if is_hub else "kwargs") or {}),
        input_px=backbone.input_px,
        feature_dim=backbone.feature_dim,
        hub_id=source if is_hub and not Path(source).is_dir() else "",
        parameters=count_parameters(backbone.net),
        licence="",
        gated=False,
        mean=mean,
        std=std,
    )


def _check(settings: dict[str, Any]) -> None:
    for key, what, found, expected in backbone_faults(settings):
        raise UserError(
            f"The settings of a backbone are not valid: {key}: {what}",
            where=f"backbone.{key}",
            found=found,
            expected=expected,
            fix="correct or remove the key",
        )


def _check_pool(settings: dict[str, Any], pools: tuple[str, ...], fix: str) -> None:
    pool = settings.get("pool") or "native"
    if pool not in pools:
        raise UserError(
            "A backbone cannot be pooled in this way",
            where="backbone.pool",
            found=f"pool: {pool} with {settings['name']}",
            expected=", ".join(pools),
            fix=fix,
        )


def _build_registered(spec: BackboneSpec, settings: dict[str, Any], load_weights: bool, root: Path) -> Backbone:
    settings.setdefault("input_px", spec.input_px)
    if spec.library != "transformers":
        _check_pool(settings, _TIMM_POOLS, "remove the key 'pool'")
    _check_registered_side(spec, int(settings["input_px"]))
    mean, std = tuple(settings.get("mean", spec.mean)), tuple(settings.get("std", spec.std))
    weights = settings.get("weights", "required" if spec.hub_id else "none")
    file = None
    if load_weights and weights == "required" and spec.hub_id:
        file = _obtain(spec.name, spec.hub_id, spec.files, root, gated=spec.gated)
    elif load_weights and weights not in (None, "none"):
        file = _own_file(weights, spec.name)
    pool = str(settings.get("pool", "native"))
    state = _read(file, spec, root) if file else None
    if spec.library == "transformers":
        config = hub_nets.make_config(spec.arguments, spec.architecture)
        if file and (file.parent / "config.json").is_file():
            config = hub_nets.folder_config(file.parent)
            hub_nets.check_registered(config, spec.arguments, file.parent)
        net = hub_nets.load_network(config, pool, state, file) if state and file else hub_nets.new_network(config, pool)
        form: Any = hub_nets.form_of(net, int(settings["input_px"]), pool)
    else:
        tower = timm_nets.coca_tower if spec.library == "open_clip" else None

        def make() -> torch.nn.Module:
            return tower(spec.arguments) if tower else timm_nets.timm_network(spec.architecture, spec.arguments)

        net = timm_nets.blank(make) if state else make()
        if state and file:
            fill(net, state, file)
        form = timm_nets.coca_form(net) if tower else timm_form(net, int(settings["input_px"]))
    taken = _taken(spec.name, file, spec.hub_id if weights == "required" else "")
    return Backbone(net, settings, spec.library, mean, std, form=form, weights=taken)


def _check_registered_side(spec: BackboneSpec, input_px: int) -> None:
    if input_px == spec.input_px:
        return
    if not spec.multiple:
        raise UserError(
            "A backbone does not take images of this size",
            where="backbone.input_px",
            found=f"{input_px} px with {spec.name}",
            expected=f"{spec.input_px} px",
            fix=f"set input_px: {spec.input_px}",
        )
    if input_px % spec.multiple:
        raise timm_nets.not_a_multiple(input_px, spec.multiple, spec.name)


def _read(file: Path, spec: BackboneSpec, root: Path) -> State:
    again = download_command(spec.hub_id, own_folders(spec.hub_id, root)[-1]) if spec.hub_id else "get the file again"
    return take(read_state(file, again), spec.names, spec.left_out)


def _taken(name: str, file: Path | None, hub_id: str) -> WeightFile | None:
    if file is None:
        return None
    sent = bool(hub_id) and check_sent(file, hub_id)
    taken = identify(file, hub_id)
    as_sent = ", as the hub sent it" if sent else ""
    _log.info("%s: weights from %s, %s bytes, sha256 %s%s", name, file, f"{taken.bytes:,}", taken.sha256, as_sent)
    return taken


def _obtain(name: str, hub_id: str, files: tuple[str, ...], root: Path, *, gated: bool = False) -> Path:
    """Return the weight file: one on this machine, else downloaded from the hub where that answers."""
    file = locate(hub_id, files, root)
    if file is not None:
        return file
    try:
        return download(hub_id, files, own_folders(hub_id, root)[-1])
    except HubSilentError as error:
        raise missing(name, hub_id, files, root, gated=gated, why=f"none there; {error}") from error


def _build_timm(settings: dict[str, Any], load_weights: bool) -> Backbone:
    architecture = str(settings["name"]).split(":", 1)[1]
    timm_nets.check_name(architecture)
    if "input_px" not in settings:
        raise UserError(
            "A timm backbone needs its input size", where="backbone.input_px", fix="add 'input_px', e.g. 224"
        )
    _check_pool(settings, _TIMM_POOLS, "remove the key 'pool', or take kwargs: {global_pool: avg}, which timm knows")
    kwargs = settings.get("kwargs") or {}
    weights = settings.get("weights", "none")
    file = None if not load_weights or weights in (None, "none") else _own_file(weights, architecture)
    if file is None:
        net = timm_nets.timm_network(architecture, kwargs)
    else:
        net = timm_nets.blank(lambda: timm_nets.timm_network(architecture, kwargs))
        state = read_state(file, "get the file again")
        fill(net, take(state, "same", timm_nets.classifier_names(net)), file)
    timm_nets.check_side(net, int(settings["input_px"]), architecture)
    mean, std = tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))
    form = timm_form(net, int(settings["input_px"]))
    return Backbone(net, settings, "timm", mean, std, form=form, weights=_taken(architecture, file, ""))


def _own_file(weights: Any, name: str) -> Path:
    if weights == "required":
        raise UserError(
            "This backbone has no registered weights",
            where="backbone.weights",
            found=f"weights: required with {name}",
            expected="none, or a file of the network's tensors",
            fix="name the file",
        )
    return Path(str(weights))


def _build_dinov3(settings: dict[str, Any], load_weights: bool) -> Backbone:
    settings.setdefault("input_px", 224)
    config = hub_nets.make_config(settings.get("config") or {}, "dinov3_vit")
    weights = settings.get("weights", "none")
    file = None if not load_weights or weights in (None, "none") else _own_file(weights, "dinov3")
    return _hub_backbone(settings, config, file, "")


def _build_hub(settings: dict[str, Any], load_weights: bool, root: Path) -> Backbone:
    """Build ``folder``, ``transformers:<folder or hub id>``, or ``transformers`` from its ``config``."""
    source = str(settings["name"]).partition(":")[2] or str(settings.get("path", ""))
    weights = settings.get("weights", "required" if source else "none")
    wanted = load_weights and weights not in (None, "none")
    if settings.get("config") and not (wanted and source):
        config = hub_nets.image_half(
            hub_nets.make_config(settings["config"], strict=settings["name"] == "transformers")
        )
        file = _own_file(weights, "transformers") if wanted else None
        return _hub_backbone(_with_side(settings, config, None), config, file, "")
    if not source and settings["name"] != "folder":
        raise UserError(
            "A transformers backbone needs to know which",
            where="backbone.name",
            found=settings["name"],
            expected="transformers:<folder or hub id>, or a 'config' with its model_type",
            fix="add one of the two",
        )
    folder, hub_id = _hub_folder(source, str(settings["name"]), root, load_weights)
    config = hub_nets.folder_config(folder)
    file = None
    if wanted:
        file = weight_file_in(folder) if weights == "required" else Path(str(weights))
        if file is None:
            raise UserError(
                "A backbone's folder has no weights",
                where=folder,
                expected=" or ".join(WEIGHT_FILES),
                fix="download the folder again; weights in several parts are to be saved as one "
                "(save_pretrained with max_shard_size)",
            )
    settings["config"] = hub_nets.plain(config)
    return _hub_backbone(_with_side(settings, config, folder), config, file, hub_id if weights == "required" else "")


def _hub_folder(source: str, name: str, root: Path, load_weights: bool) -> tuple[Path, str]:
    """Return the folder of a ``transformers:`` backbone and its hub id, empty for a folder of one's own."""
    folder = Path(source)
    if name == "folder" or folder.is_dir() or source.count("/") != 1 or source.startswith("."):
        return folder, ""
    if load_weights:
        return _obtain(name, source, WEIGHT_FILES, root).parent, source
    file = locate(source, ("config.json",), root)
    if file is None:
        raise missing(name, source, ("config.json",), root)
    return file.parent, source


def _with_side(settings: dict[str, Any], config: Any, folder: Path | None) -> dict[str, Any]:
    told = hub_nets.read_preprocessor(folder) if folder else {}
    side = getattr(config, "image_size", None)
    usual = {"input_px": side if isinstance(side, int) and settings["name"] != "folder" else 224}
    for key, value in {**usual, **told}.items():
        settings.setdefault(key, value)
    return settings


def _hub_backbone(settings: dict[str, Any], config: Any, file: Path | None, hub_id: str) -> Backbone:
    pool = str(settings.get("pool", "native"))
    _check_pool(settings, _HUB_POOLS, "change or remove the key 'pool'")
    if file is None:
        net = hub_nets.new_network(config, pool)
    else:
        left_out = hub_nets.OTHER_HEADS + (() if pool == "pooler" else ("pooler.*", "*.pooler.*"))
        state = take(read_state(file, "make or download the folder again"), "same", left_out)
        net = hub_nets.load_network(config, pool, state, file)
    hub_nets.check_side(config, int(settings["input_px"]), str(settings["name"]))
    form = hub_nets.form_of(net, int(settings["input_px"]), pool)
    mean, std = tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))
    taken = _taken(str(settings["name"]), file, hub_id)
    return Backbone(net, settings, "transformers", mean, std, form=form, weights=taken)
