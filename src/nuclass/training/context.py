"""Features of the frozen context backbone, computed once for every labelled cell and kept."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from nuclass.core.names import TEST, TRAIN, VAL
from nuclass.data.study import Study
from nuclass.models.backbones import Backbone, build_backbone
from nuclass.training.config import Context, parse_models
from nuclass.training.embedding import Embedding, embed_slide


def context_backbone(settings: Context, folder: Path | None) -> Backbone:
    """Return the context backbone: from ``folder`` where one was trained, else by its own settings."""
    described: dict[str, Any] = dict(settings.backbone)
    if folder is not None:
        keep: dict[str, Any] = {key: described[key] for key in ("input_px", "mean", "std") if key in described}
        described = {"name": "folder", "path": str(folder), **keep}
    return build_backbone(described)


def embed_context(
    models: dict[str, Any],
    study: Study,
    out: Path,
    work: Path,
    *,
    folder: Path | None = None,
    views_out: Path | None = None,
    seed: int = 42,
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
    """
    from nuclass.data import load_cells

    settings = parse_models(models).context
    shared = {item.name for item in fields(Embedding)} & {item.name for item in fields(Context)}
    frame = load_cells(study.slides, study.results, (TRAIN, VAL, TEST))
    embed_slide(
        context_backbone(settings, folder),
        frame,
        study,
        Embedding(window="global", seed=seed, **{name: getattr(settings, name) for name in shared}),
        out,
        work,
        name=str(settings.backbone["name"]),
        views_out=views_out,
        augmented=frame["split"].isin((TRAIN, VAL)).to_numpy(),
    )
    return len(frame)
