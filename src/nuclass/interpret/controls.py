"""Controls of the local model's activation maps: other weights, another layer, attention alone, the cell's own area."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import GLOBAL, LOCAL
from nuclass.interpret.gradcam import (
    calls,
    class_activation,
    described,
    enlarge,
    local_inputs,
    local_maps,
    read_images,
    to_window,
    with_rows,
)
from nuclass.interpret.rollout import has_attention, rollout_map
from nuclass.models.backbones import Backbone
from nuclass.models.local import LocalModel
from nuclass.patches.windows import WindowReader
from nuclass.training.branches import choose_device
from nuclass.training.checkpoint import load_checkpoint
from nuclass.training.config import Context, Local, from_plain
from nuclass.training.context import context_backbone
from nuclass.training.restore import new_local, restore_local

if TYPE_CHECKING:
    import pandas as pd

_log = get_logger(__name__)
STAGES = {"whole": 1.0, "half": 0.5, "head": 0.0}
"""Share of the backbone's tensors that are drawn anew, counted from the output; the head always is."""
NO_ATTENTION = "none"


def compute_controls(
    cells: pd.DataFrame,
    *,
    windows: Mapping[str, str | Path],
    tables: Mapping[str, str | Path],
    checkpoints: Mapping[str, str | Path],
    cache_mb: int = 128,
    context_folder: str | Path | None = None,
    draws: int = 5,
    seed: int = 0,
) -> tuple[dict[str, NDArray[Any]], pd.DataFrame]:
    """Compute the controls of a few cells for the class that the local model predicts.

    Parameters
    ----------
    cells
        One row a cell: ``slide cell_id organ x_px y_px label``.
    windows, tables, checkpoints, context_folder
        As for :func:`nuclass.interpret.gradcam.compute_maps`.
    draws, seed
        Random networks that rank correlations are the mean of.

    Returns
    -------
    ``local_image`` (N, S, S, 3) uint8; in [0, 1] ``cam``, ``random`` (the first network drawn anew as a whole) and
    ``released`` (N, S, S); ``rollout`` and ``rollout_image``, on the local window where the local network has
    attention, on the global one where only the context network has, missing where neither has. And a table:

    ``slide cell_id label prediction probability``; ``spearman_<stage>``, see :data:`STAGES`, the rank correlation with
    the map of the trained network over the ``places`` of the grid of its ``layer``; ``radius_px`` of a circle of the
    cell's area; ``in_cell_<map>``, the share of the map that lies in this circle, divided by the circle's share of the
    window; ``rollout_of``: ``local``, ``context`` or ``none``. Without a cell there are no arrays and no measures.
    """
    table = cells[["slide", "cell_id", "label"]].copy()
    if not len(cells):
        return {}, table
    reader = WindowReader(windows, cache_mb)
    placed = with_rows(cells, tables)
    data = load_checkpoint(Path(checkpoints["local"]), LOCAL)
    side, device = data["windows"]["local"], choose_device()
    model = restore_local(data).to(device).requires_grad_(False)
    images, organ = local_inputs(data, placed, reader, device)
    cam, logits = local_maps(model, images, organ)
    target = logits.argmax(1)
    drawn, correlations = _drawn_anew(model, data, images, organ, target, cam, draws, seed)
    maps = {"cam": cam, "random": drawn, "released": released_maps(model, images, organ)}
    arrays: dict[str, NDArray[Any]] = {"local_image": reader.read(placed, side, 0, side)}
    table["prediction"], table["probability"] = calls(logits, target, data)
    table = table.assign(layer=described(model.backbone, cam), places=cam.shape[1] * cam.shape[2])
    table = table.assign(**{f"spearman_{stage}": found for stage, found in correlations.items()})
    table["radius_px"] = radius = cell_radius(placed, tables, data["mpp"])
    for name, values in maps.items():
        arrays[name] = to_window(values, side).cpu().numpy()
        table[f"in_cell_{name}"] = in_cell(values, side, radius)
    whose, seen, attention, width = _rollout(model, checkpoints["global"], placed, images, reader, context_folder)
    table = table.assign(rollout_of=whose, in_cell_rollout=np.nan)
    if attention is not None and seen is not None:
        arrays |= {"rollout": to_window(attention, width).cpu().numpy(), "rollout_image": seen}
        table["in_cell_rollout"] = in_cell(attention, width, radius)
    _log.info("mean rank correlation: %s", ", ".join(f"{k} {table[f'spearman_{k}'].mean():.2f}" for k in STAGES))
    return arrays, table


def learned_below(fresh: LocalModel, model: LocalModel, share: float) -> None:
    """Give a fresh model the learned backbone but for its upper ``share`` of tensors; the head stays fresh.

    Tensors are counted in the order in which the network lists them, which is from the image to the output.
    """
    learned = model.state_dict()
    backbone = [name for name in learned if name.startswith("backbone.")]
    kept = backbone[: round(len(backbone) * (1 - share))]
    fresh.load_state_dict({name: learned[name] for name in kept}, strict=False)


def _drawn_anew(
    model: LocalModel,
    checkpoint: dict[str, Any],
    images: Tensor,
    organ: Tensor,
    target: Tensor,
    cam: Tensor,
    draws: int,
    seed: int,
) -> tuple[Tensor, dict[str, NDArray[np.float64]]]:
    """Return the maps (N, h, w) of the first random network, and for each stage the mean correlation over all, (N,).

    The sanity check of Adebayo et al. (2018): a map that stays when the weights go does not tell of the model. A random
    network whose map is the same everywhere has no correlation and does not count.
    """
    import pandas as pd

    section = from_plain(Local, checkpoint["config"], "the local checkpoint")
    first: Tensor | None = None
    values: dict[str, list[NDArray[np.float64]]] = {stage: [] for stage in STAGES}
    for draw in range(draws):
        with torch.random.fork_rng():
            torch.manual_seed(seed + draw)
            fresh = new_local(section, len(checkpoint["organs"]), len(checkpoint["classes"]), load_weights=False)
        fresh = fresh.to(images.device).eval().requires_grad_(False)
        for stage, share in STAGES.items():
            learned_below(fresh, model, share)
            maps, _ = local_maps(fresh, images, organ, target)
            values[stage].append(spearman(cam, maps))
            if stage == "whole" and first is None:
                first = maps
    if first is None:
        raise ValueError("draws must be 1 or more")
    return first, {stage: pd.DataFrame(rows).mean().to_numpy() for stage, rows in values.items()}


def spearman(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """Return the rank correlation of each pair of maps (N, h, w), (N,); missing where one is the same everywhere."""
    import pandas as pd

    found = []
    for one, two in zip(a.flatten(1).cpu().numpy(), b.flatten(1).cpu().numpy(), strict=True):
        ranks = [pd.Series(values).rank().to_numpy() for values in (one, two)]
        flat = any(np.ptp(values) == 0 for values in ranks)
        found.append(np.nan if flat else float(np.corrcoef(ranks[0], ranks[1])[0, 1]))
    return np.array(found, dtype=np.float64)


def first_convolution(backbone: Backbone) -> nn.Module:
    """Return the first convolution of a network, in a vision transformer the embedding of its patches."""
    for module in backbone.net.modules():
        if isinstance(module, nn.Conv2d):
            return module
    raise UserError(
        "This backbone has no convolution to make the original's map from",
        where=type(backbone.net).__name__,
        fix="leave out the figure gradcam_controls, or take another backbone",
    )


def released_maps(model: LocalModel, images: Tensor, organ: Tensor) -> Tensor:
    """Return the original's maps (N, h, w): Grad-CAM of the predicted class's logit at the first convolution.

    Its gradients are those of colours and edges, before any block has put a patch into its surroundings.
    """
    layer = first_convolution(model.backbone)
    parts = []
    # Every block's activations are kept here, so that one cell is run at a time.
    for image, name in zip(images.split(1), organ.split(1), strict=True):
        forward = _forward(model, image, name)
        parts.append(class_activation(model.backbone, forward, layer=layer, score=_logit)[0])
    return torch.cat(parts)


def _forward(model: LocalModel, image: Tensor, organ: Tensor) -> Any:
    return lambda: model(image, organ).logits


def _logit(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None])[:, 0]


def cell_radius(cells: pd.DataFrame, tables: Mapping[str, str | Path], mpp: float) -> NDArray[np.float64]:
    """Return the radius (N,) in store pixels of a circle of each cell's area; missing where the area is not known."""
    import pandas as pd

    area = np.full(len(cells), np.nan)
    for slide, part in cells.reset_index(drop=True).groupby("slide"):
        known = pd.read_parquet(tables[str(slide)])
        if "cell_area" in known:
            area[part.index] = known["cell_area"].iloc[part["row"]].to_numpy(np.float64)
    return np.sqrt(area / np.pi) / mpp


def in_cell(maps: Tensor, side: int, radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many times as much of a map lies in the middle circle as chance would put there, (N,).

    Parameters
    ----------
    maps
        (N, h, w), not negative.
    side, radius
        Of the window and of each circle (N,), in store pixels.
    """
    large = enlarge(maps, side).cpu().numpy().astype(np.float64)
    axis = np.arange(side) + 0.5 - side / 2
    distance = np.hypot(axis[:, None], axis[None, :])
    found = np.full(len(large), np.nan)
    for i, values in enumerate(large):
        inside = distance <= radius[i]
        if inside.any() and values.sum() > 0:
            found[i] = values[inside].sum() / values.sum() / inside.mean()
    return found


def _rollout(
    model: LocalModel,
    global_checkpoint: str | Path,
    cells: pd.DataFrame,
    images: Tensor,
    reader: WindowReader,
    context_folder: str | Path | None,
) -> tuple[str, NDArray[np.uint8] | None, Tensor | None, int]:
    """Return whose rollout it is, the windows (N, side, side, 3) behind it, the maps (N, h, w), and the side."""
    data = load_checkpoint(Path(global_checkpoint), GLOBAL)
    local, wide = data["windows"]["local"], data["windows"]["global"]
    if has_attention(model.backbone):
        return LOCAL, reader.read(cells, local, 0, local), rollout_map(model.backbone, images), local
    settings = from_plain(Context, data["context"], "the global checkpoint")
    folder = context_folder or data["context_folder"]
    net = context_backbone(settings, Path(folder) if folder else None).to(images.device).eval().requires_grad_(False)
    if not has_attention(net):
        return NO_ATTENTION, None, None, wide
    around = read_images(reader, cells, wide, settings.read_level, net.input_px, images.device)
    return "context", reader.read(cells, wide, 0, wide), rollout_map(net, around), wide
