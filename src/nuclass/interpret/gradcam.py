"""Gradient-weighted class activation maps of both branches and of the mixture as the gate weighs it.

What is explained is the log odds of a class, ``z_c - ln sum_{j != c} exp z_j``: a logit alone says nothing, for only
differences of logits count, and a probability has no gradient left where the network is sure.

Convolutional networks: the last stage that has at least :data:`LEAST_SIDE` places a side. Where that is the last of
all, Grad-CAM (Selvaraju et al., 2017): a channel weighs as much as its mean gradient, and the map is the positive part
of the weighted sum. Where the last stage is coarser, an earlier one is taken, and there gradients differ from place to
place: each activation is multiplied with the positive part of its own gradient, and all channels are summed (LayerCAM,
Jiang et al., 2021, which is made for such layers).

Vision transformers: the patch tokens that enter the last block's attention, after its first norm, put back on their
grid; class and register tokens are left out. (After the last block a patch has no gradient where the class token is
read out.) Gradients differ from place to place, for the class token attends to few patches, so they are not averaged:
each token's difference from the mean token is multiplied with its own gradient, and the positive parts are summed over
the channels (LayerCAM, Jiang et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nuclass.core.errors import UserError
from nuclass.data.augment import to_unit
from nuclass.data.vocabulary import Vocabulary
from nuclass.models.backbones import Backbone

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.patches.windows import WindowReader
    from nuclass.training.branches import Branches


@dataclass(frozen=True)
class Maps:
    """Maps of N cells, float32 in [0, 1], in the windows' frames (S = local, W = global side in store pixels).

    Attributes
    ----------
    local, global_local
        (N, S, S): the local model, and the local branch of the global model.
    global_context
        (N, W, W): the context branch of the global model.
    gated
        (N, W, W): ``(1 - g) local + g global_context``, the local map in its place in the middle.
    classes, probabilities
        The class that is explained and its calibrated probability, by model: ``local``, ``global``.
    gate
        (N,), weight of the global model.
    layers
        Layer and grid in words of ``local global_local global``.
    """

    local: NDArray[np.float32]
    global_local: NDArray[np.float32]
    global_context: NDArray[np.float32]
    gated: NDArray[np.float32]
    classes: dict[str, list[str]]
    probabilities: dict[str, NDArray[np.float32]]
    gate: NDArray[np.float32]
    layers: dict[str, str]


LEAST_SIDE = 7
"""Places a side that an explained stage has at least: those of the last stage of a usual network at its 224 px."""


@dataclass(frozen=True)
class Layer:
    """Where maps are taken.

    Attributes
    ----------
    module
        Its output is explained.
    name
        In words, for figures.
    last
        Whether nothing but pooling and head comes after it.
    """

    module: nn.Module
    name: str
    last: bool = True


def explained(backbone: Backbone) -> Layer:
    """Return the layer whose output is explained.

    Of a vision transformer the last block's first norm; of a convolutional network the last stage of at least
    :data:`LEAST_SIDE` places a side, or the finest where all are coarser.
    """
    last = backbone.explained_layer()
    if backbone.kind == "tokens":
        return Layer(last, "last block")
    stages: Any = backbone.net.feature_info
    sides = [-(-backbone.input_px // int(stage["reduction"])) for stage in stages]
    fine = [place for place, side in enumerate(sides) if side >= LEAST_SIDE] or [0]
    if fine[-1] == len(sides) - 1:
        return Layer(last, "last stage")
    module = backbone.net.get_submodule(stages[fine[-1]]["module"])
    return Layer(module, f"stage {fine[-1] + 1} of {len(sides)}", last=False)


def target_layer(backbone: Backbone) -> nn.Module:
    """Return the module whose output is explained, see :func:`explained`."""
    return explained(backbone).module


def described(backbone: Backbone, maps: Tensor) -> str:
    """Return in words the layer that maps (B, h, w) are of, and their grid."""
    return f"{explained(backbone).name}, {maps.shape[1]} × {maps.shape[2]}"


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[Tensor]]:
    """Keep a module's output, so that gradients with respect to it can be taken."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        kept.append(output)
        return output

    handle = module.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def class_activation(
    backbone: Backbone,
    forward: Callable[[], Tensor],
    target: Tensor | None = None,
    *,
    layer: nn.Module | None = None,
    score: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return maps (B, h, w) on the grid of a layer, not scaled, and the logits (B, C).

    Parameters
    ----------
    backbone
        Where the maps are taken.
    forward
        Runs the whole model, this backbone included, and returns logits (B, C).
    target
        Class of each image, (B,); the predicted one by default.
    layer
        Its output is explained, tokens or (B, D, h, w), and maps of it are weighed by mean gradients; by default
        the one of :func:`explained`.
    score
        What is explained, (B,) from logits and target; :func:`log_odds` by default.
    """
    where = explained(backbone) if layer is None else Layer(layer, "")
    with torch.enable_grad(), _recorded(where.module) as kept:
        logits = forward()
        chosen = logits.argmax(1) if target is None else target.to(logits.device)
        activation = kept[-1]
        (gradient,) = torch.autograd.grad((score or log_odds)(logits, chosen).sum(), activation)
    grid, slope = to_grid(activation.detach(), backbone), to_grid(gradient, backbone)
    if activation.ndim == 4 and not where.last:
        return (slope.clamp_min(0) * grid).sum(1).clamp_min(0), logits.detach()
    if activation.ndim == 4:
        return (slope.mean((2, 3), keepdim=True) * grid).sum(1).clamp_min(0), logits.detach()
    return (slope * (grid - grid.mean((2, 3), keepdim=True))).clamp_min(0).sum(1), logits.detach()


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Return ``ln p / (1 - p)`` of each row's target class, (B,); ``logits`` (B, C)."""
    logits = logits.float()
    rest = logits.scatter(1, target[:, None], -torch.inf)
    return logits.gather(1, target[:, None])[:, 0] - rest.logsumexp(1)


def to_grid(activation: Tensor, backbone: Backbone) -> Tensor:
    """Return activations as (B, C, h, w): patch tokens on their grid, or a feature map as it is."""
    if activation.ndim == 4:
        return activation
    patches = activation[:, backbone.prefix_tokens :]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise ValueError(f"{patches.shape[1]} patch tokens are not a square grid")
    return patches.transpose(1, 2).reshape(len(patches), patches.shape[2], side, side)


def enlarge(maps: Tensor, side: int) -> Tensor:
    """Return maps (B, h, w) on a window's pixels, (B, side, side), bilinear; the outer edges of the grids coincide."""
    return F.interpolate(maps[:, None].float(), size=(side, side), mode="bilinear", align_corners=False)[:, 0]


def to_window(maps: Tensor, side: int) -> Tensor:
    """Return maps (B, h, w) enlarged to a window's frame (B, side, side), each scaled to [0, 1].

    A map that is zero stays zero.
    """
    large = enlarge(maps, side)
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return torch.where(high > low, (large - low) / (high - low).clamp_min(1e-12), torch.zeros_like(large))


def local_maps(model: Any, images: Tensor, organ: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the local model's maps (B, h, w) and logits (B, C) for images (B, 3, S, S) in [0, 1]."""
    return class_activation(model.backbone, lambda: model(images, organ).logits, target)


def global_local_maps(
    model: Any, images: Tensor, context: Tensor, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the maps of the global model's local branch and its logits; ``context`` (B, K) are features."""
    return class_activation(model.backbone, lambda: model(images, context).logits, target)


def global_context_maps(
    model: Any, context_net: Backbone, pooling: str, images: Tensor, neighbourhood: Tensor, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the maps of the global model's context branch and its logits.

    ``neighbourhood`` (B, 3, W, W) in [0, 1] goes through the context network here; cached features have no gradient.
    """
    from nuclass.training.embedding import pool_tokens

    def forward() -> Tensor:
        tokens = context_net.spatial(neighbourhood)
        return model(images, pool_tokens(tokens, context_net.prefix_tokens, pooling)).logits

    return class_activation(context_net, forward, target)


def compute_maps(
    cells: pd.DataFrame,
    *,
    windows: Mapping[str, str | Path],
    tables: Mapping[str, str | Path],
    checkpoints: Mapping[str, str | Path],
    cache_mb: int = 128,
    context_folder: str | Path | None = None,
) -> dict[str, NDArray[Any]]:
    """Compute the maps of a few cells, with the windows they belong to.

    Parameters
    ----------
    cells
        One row a cell: ``slide cell_id organ x_px y_px gate``; with ``local_prediction`` and ``global_prediction`` the
        classes to explain, else each branch's own prediction.
    windows
        What the windows of each slide are read from: its store, or the list of its patch files.
    tables
        ``cells.parquet`` of each slide.
    checkpoints
        ``best.ckpt`` of ``local`` and ``global``.
    context_folder
        Folder of the context backbone; by default the one that the global checkpoint names.

    Returns
    -------
    ``local_image`` (N, S, S, 3) and ``global_image`` (N, W, W, 3) uint8, ``local_cam`` (N, S, S), ``global_local_cam``
    (N, S, S), ``global_cam`` and ``gated_cam`` (N, W, W) float32 in [0, 1]; and of each but the last
    ``<name>_layer``, layer and grid in words.
    """
    from nuclass.patches.windows import WindowReader
    from nuclass.training.branches import Branches
    from nuclass.training.config import Predict

    branches = Branches(Path(checkpoints["local"]), Path(checkpoints["global"]), Predict())
    reader = WindowReader(windows, cache_mb)
    cells = with_rows(cells, tables)
    sides = branches.global_["windows"]
    maps = explain(cells, branches, reader, Path(context_folder) if context_folder else None)
    return {
        "local_image": reader.read(cells, sides["local"], 0, sides["local"]),
        "global_image": reader.read(cells, sides["global"], 0, sides["global"]),
        "local_cam": maps.local,
        "global_local_cam": maps.global_local,
        "global_cam": maps.global_context,
        "gated_cam": maps.gated,
        **{f"{name}_cam_layer": np.array(words) for name, words in maps.layers.items()},
    }


def with_rows(cells: pd.DataFrame, tables: Mapping[str, str | Path]) -> pd.DataFrame:
    """Return cells with ``row``, the row of each in the table of its slide."""
    import pandas as pd

    rows = np.full(len(cells), -1, np.int32)
    for slide, part in cells.reset_index(drop=True).groupby("slide"):
        known = pd.Index(pd.read_parquet(tables[str(slide)], columns=["cell_id"])["cell_id"].astype(str))
        rows[part.index] = known.get_indexer(part["cell_id"].astype(str))
    if (rows < 0).any():
        first = cells.iloc[int(np.flatnonzero(rows < 0)[0])]
        raise UserError(
            "A cell to explain is not in the table of its slide",
            where=tables[str(first["slide"])],
            found=f"{int((rows < 0).sum())} cells, the first: {first['cell_id']}",
            fix="choose the cells again",
        )
    return cells.assign(row=rows)


def read_images(
    reader: WindowReader, cells: pd.DataFrame, size: int, level: int, out_px: int, device: torch.device
) -> Tensor:
    """Return windows (N, 3, out_px, out_px) in [0, 1]; parameters as in :meth:`WindowReader.read`."""
    seen = reader.read(cells, size, level, out_px)
    return to_unit(torch.from_numpy(seen).movedim(-1, 1)).to(device)


def local_inputs(
    checkpoint: dict[str, Any], cells: pd.DataFrame, reader: WindowReader, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, S, S) and organs (N,) as the local model or baseline of a checkpoint reads them."""
    source = checkpoint["input"]
    organ = torch.from_numpy(Vocabulary.from_dict(checkpoint).encode_organs(cells["organ"])).to(device)
    side = checkpoint["windows"]["local"]
    return read_images(reader, cells, side, source["read_level"], source["input_px"], device), organ


def calls(
    logits: Tensor, target: Tensor | None, checkpoint: Mapping[str, Any]
) -> tuple[list[str], NDArray[np.float32]]:
    """Return the class that is explained (the predicted one without ``target``) and its calibrated probability."""
    index = (logits.argmax(1) if target is None else target).cpu()
    shares = (logits.cpu().float() / float(checkpoint["temperature"])).softmax(1)
    found: NDArray[np.float32] = shares.gather(1, index[:, None])[:, 0].numpy()
    return [checkpoint["classes"][int(i)] for i in index], found


def explain(cells: pd.DataFrame, branches: Branches, reader: WindowReader, context_folder: Path | None = None) -> Maps:
    """Return the maps of a few cells; parameters as in :func:`compute_maps`."""
    from nuclass.training.config import Context, from_plain
    from nuclass.training.context import context_backbone
    from nuclass.training.embedding import pool_tokens

    settings = from_plain(Context, branches.global_["context"], "the global checkpoint")
    folder = context_folder or branches.context_folder
    context_net = context_backbone(settings, folder).to(branches.device).eval().requires_grad_(False)
    sides, device, names = branches.global_["windows"], branches.device, list(branches.vocabulary.classes)
    images, organ = local_inputs(branches.local, cells, reader, device)
    neighbourhood = read_images(reader, cells, sides["global"], settings.read_level, context_net.input_px, device)
    with torch.no_grad():
        context = pool_tokens(context_net.spatial(neighbourhood), context_net.prefix_tokens, settings.pooling)
    targets = {
        model: torch.tensor([names.index(name) for name in cells[f"{model}_prediction"]], device=device)
        if f"{model}_prediction" in cells
        else None
        for model in ("local", "global")
    }
    a, logits_a = local_maps(branches.model_a, images, organ, targets["local"])
    b, logits_b = global_local_maps(branches.model_b, images, context, targets["global"])
    c, _ = global_context_maps(
        branches.model_b, context_net, settings.pooling, images, neighbourhood, targets["global"]
    )
    local, wide = to_window(a, sides["local"]).cpu(), to_window(c, sides["global"]).cpu()
    gate = torch.tensor(cells["gate"].to_numpy(np.float32))
    called = {
        "local": calls(logits_a, targets["local"], branches.local),
        "global": calls(logits_b, targets["global"], branches.global_),
    }
    return Maps(
        local=local.numpy(),
        global_local=to_window(b, sides["local"]).cpu().numpy(),
        global_context=wide.numpy(),
        gated=gated_map(local, wide, gate).numpy(),
        classes={model: names for model, (names, _) in called.items()},
        probabilities={model: shares for model, (_, shares) in called.items()},
        gate=gate.numpy(),
        layers={
            "local": described(branches.model_a.backbone, a),
            "global_local": described(branches.model_b.backbone, b),
            "global": described(context_net, c),
        },
    )


def gated_map(local: Tensor, wide: Tensor, gate: Tensor) -> Tensor:
    """Return ``(1 - g) local + g wide`` (N, W, W), the local map (N, S, S) placed in the middle of the global window.

    Both windows are cut around the same point with ``x0 = floor(x - side / 2 + 0.5)``, so the local one starts
    ``(W - S) / 2`` pixels into the global one.
    """
    margin = (wide.shape[-1] - local.shape[-1]) // 2
    rest = wide.shape[-1] - local.shape[-1] - margin
    placed = F.pad(local, (margin, rest, margin, rest))
    g = gate.view(-1, 1, 1)
    return (1 - g) * placed + g * wide
