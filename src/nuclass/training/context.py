"""Features of the frozen context backbone, computed once for every labelled cell and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nuclass.core.names import TEST, TRAIN, VAL
from nuclass.core.progress import Progress
from nuclass.data.study import Study
from nuclass.models.backbones import Backbone, build_backbone
from nuclass.training.augment import augment_images, to_unit
from nuclass.training.branches import autocast, choose_device, state_hash
from nuclass.training.config import Context, parse_models
from nuclass.training.inputs import by_place

if TYPE_CHECKING:
    import pandas as pd


def pool_context(tokens: Tensor, prefix: int, pooling: str) -> Tensor:
    """Return the context vector (B, K) of tokens (B, T, D) after the final norm.

    ``cls``: the class token (what transformers calls ``pooler_output``). ``mean``: mean of the patch tokens,
    registers left out. ``center``: mean of the four patch tokens around the middle. Joined with ``+``.
    """
    patches = tokens[:, prefix:]
    parts = []
    for name in pooling.split("+"):
        if name == "cls":
            parts.append(tokens[:, 0])
        elif name == "mean":
            parts.append(patches.mean(1))
        else:
            side = round(patches.shape[1] ** 0.5)
            grid = patches.reshape(len(patches), side, side, -1)
            low, high = (side - 1) // 2, side // 2 + 1
            parts.append(grid[:, low:high, low:high].mean((1, 2)))
    return torch.cat(parts, 1)


def context_backbone(settings: Context, folder: Path | None) -> Backbone:
    """Return the context backbone: from ``folder`` where one was trained, else by its own settings."""
    described: dict[str, Any] = dict(settings.backbone)
    if folder is not None:
        keep: dict[str, Any] = {key: described[key] for key in ("input_px", "mean", "std") if key in described}
        described = {"name": "folder", "path": str(folder), **keep}
    return build_backbone(described)


@torch.inference_mode()
def embed_context(
    models: dict[str, Any],
    study: Study,
    out: Path,
    *,
    folder: Path | None = None,
    views_out: Path | None = None,
    seed: int = 42,
) -> int:
    """Cache one slide's context features; returns the number of cells.

    Windows are read in the order of their place and never held all at once.

    Parameters
    ----------
    study
        Its ``slides`` holds this one slide.
    out
        HDF5 file with the features of all labelled cells, float16 (N, K).
    folder
        Folder of the trained context backbone; None takes the registered one of the settings.
    views_out
        File for the features of train and val cells under ``context.views`` stain augmentations, (N, V, K).
    """
    from nuclass.data import load_cells, write_features

    settings = parse_models(models).context
    backbone = context_backbone(settings, folder).to(choose_device(settings.accelerator)).eval()
    frame = by_place(load_cells(study.slides, study.results, (TRAIN, VAL, TEST)))
    attributes = {
        "backbone": str(settings.backbone["name"]),
        "pooling": settings.pooling,
        "window_px": study.windows["global"],
        "read_level": settings.read_level,
        "input_px": backbone.input_px,
        "mpp": study.mpp,
        "sha256": state_hash(backbone.net),
    }
    augmented = frame["split"].isin((TRAIN, VAL)).to_numpy() & (views_out is not None)
    features, views = _features(frame, study, settings, backbone, augmented, seed)
    write_features(out, frame["cell_id"].tolist(), features.numpy(), attributes)
    if views_out is not None:
        write_features(views_out, frame["cell_id"][augmented].tolist(), views.numpy(), attributes)
    return len(frame)


def _features(
    frame: pd.DataFrame, study: Study, settings: Context, backbone: Backbone, augmented: Any, seed: int
) -> tuple[Tensor, Tensor]:
    """Return pooled features (N, K) of all cells and (M, V, K) of the cells marked in ``augmented``."""
    device = backbone.mean.device
    plain: list[Tensor] = []
    views: list[Tensor] = []

    def pooled(x: Tensor) -> Tensor:
        with autocast(device, settings.precision):
            tokens = backbone.spatial(x)
        return pool_context(tokens.float(), backbone.prefix_tokens, settings.pooling).half().cpu()

    generators = [torch.Generator().manual_seed(seed * 1009 + view) for view in range(settings.views)]
    with Progress(len(frame), "context features", "cells") as progress:
        for batch in _windows(frame, study, settings, backbone.input_px):
            image = batch["image"].to(device)
            plain.append(pooled(to_unit(image)))
            part = image[torch.from_numpy(augmented[batch["index"].numpy()]).to(device)]
            if len(part) and generators:
                copies = [pooled(augment_images(part, settings.augment, generator)) for generator in generators]
                views.append(torch.stack(copies, 1))
            progress.advance(len(image))
    empty = torch.zeros(int(augmented.sum()), len(generators), plain[0].shape[1], dtype=torch.half)
    return torch.cat(plain), torch.cat(views) if views else empty


def _windows(frame: pd.DataFrame, study: Study, settings: Context, input_px: int) -> Any:
    """Return batches ``image`` uint8 (B, 3, S, S) and ``index`` of the global windows, in the frame's order."""
    from nuclass.data import WindowDataset, make_loader

    none = np.zeros(len(frame), np.int64)
    size = study.windows["global"]
    dataset = WindowDataset(study.reader(), frame, size, settings.read_level, input_px, none, none)
    return make_loader(dataset, settings.batch_size, num_workers=settings.workers)
