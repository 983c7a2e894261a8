"""Features of the frozen context backbone, computed once for every labelled cell and kept."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.names import TEST, TRAIN, VAL
from nuclass.data.study import Study
from nuclass.models.backbones import Backbone, build_backbone
from nuclass.training.config import Context, parse_models
from nuclass.training.embedding import Embedding, embed_slide

if TYPE_CHECKING:
    import pandas as pd


def context_backbone(settings: Context, folder: Path | None, *, smaller: bool = False) -> Backbone:
    """Return the context backbone: from ``folder`` where one was trained, else by its own settings.

    ``smaller`` makes it see three quarters of its side, see :func:`smaller_side`.
    """
    described: dict[str, Any] = dict(settings.backbone)
    if folder is not None:
        keep: dict[str, Any] = {key: described[key] for key in ("input_px", "mean", "std") if key in described}
        described = {"name": "folder", "path": str(folder), **keep}
    backbone = build_backbone(described)
    if smaller:
        backbone.input_px = smaller_side(backbone)
        backbone.settings = {**backbone.settings, "input_px": backbone.input_px}
        if hasattr(backbone.net, "set_input_size"):
            backbone.net.set_input_size(img_size=backbone.input_px)  # type: ignore[operator]
    return backbone


def smaller_side(backbone: Backbone) -> int:
    """Return three quarters of a backbone's side in whole patches: 384 of 512 px, as the original's gate takes it."""
    net: Any = backbone.net
    for holder in (getattr(net, "config", None), getattr(net, "patch_embed", None)):
        patch = getattr(holder, "patch_size", None)
        if patch is not None:
            step = int(patch[0] if isinstance(patch, tuple | list) else patch)
            return max(round(0.75 * backbone.input_px / step), 1) * step
    return round(0.75 * backbone.input_px)


def embed_context(
    models: dict[str, Any],
    study: Study,
    out: Path,
    work: Path,
    *,
    folder: Path | None = None,
    views_out: Path | None = None,
    seed: int = 42,
    frame: pd.DataFrame | None = None,
) -> int:
    """Cache one slide's context features; returns the number of cells.

    Parameters
    ----------
    study
        Its ``slides`` holds this one slide.
    out
        HDF5 file with the features of all labelled cells, float16 (N, K).
    work
        Folder of the running state, from which a killed pass goes on.
    folder
        Folder of the trained context backbone; None takes the registered one of the settings.
    views_out
        File for the features of train and val cells under ``context.views`` stain augmentations, (N, V, K).
    frame
        The cells, of any class; None takes the labelled ones of the study's tables.

    With ``smaller_gate_context`` in the section ``protocol`` of ``models`` these are the features for the gate; with
    ``truncated_context`` windows are reduced as the original does; with ``test_as_val`` test cells get views too.
    """
    from nuclass.data import load_cells

    parsed = parse_models(models)
    settings, flaws = parsed.context, parsed.protocol
    shared = {item.name for item in fields(Embedding)} & {item.name for item in fields(Context)}
    chosen = {name: getattr(settings, name) for name in shared} | {"truncated": flaws.truncated_context}
    if frame is None:
        frame = load_cells(study.slides, study.results, (TRAIN, VAL, TEST))
    embed_slide(
        context_backbone(settings, folder, smaller=flaws.smaller_gate_context),
        frame,
        study,
        Embedding(window="global", seed=seed, **chosen),
        out,
        work,
        name=str(settings.backbone["name"]),
        views_out=views_out,
        augmented=frame["split"].isin((TRAIN, VAL, TEST) if flaws.test_as_val else (TRAIN, VAL)).to_numpy(),
    )
    return len(frame)
