"""Features of a frozen backbone for the cells of one slide, of the local or the global window, computed in one pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.jobs import code_of_job
from nuclass.core.names import CELL_ID
from nuclass.core.progress import Progress
from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.data.image_ops import reduce_truncated
from nuclass.data.training_cells import by_place
from nuclass.models.backbones import Backbone
from nuclass.training.branches import autocast, choose_device, computes_in, state_hash
from nuclass.training.compiling import Compile, compiles, failures_told, filled
from nuclass.training.inputs import source_digest

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.data.features import FeatureKey
    from nuclass.data.study import Study

POOLINGS = ("native", "cls", "mean", "center")
# Settings of a vision transformer that change its output and leave no trace in names or shapes of its weights.
_UNSEEN = ("hidden_act", "layer_norm_eps", "num_attention_heads", "rope_theta")


@dataclass(frozen=True)
class Embedding:
    """How the cells of a slide become features.

    Attributes
    ----------
    window
        ``local`` or ``global``, see :attr:`nuclass.data.study.Study.windows`.
    read_level
        Pyramid level the window is read from.
    pooling
        ``native`` (the network's own), or ``cls``, ``mean``, ``center`` joined by ``+``, see :func:`pool_spatial`.
    batch_size, workers
        Windows at once; processes that read while the network computes.
    precision, accelerator
        ``auto`` | ``32-true`` | ``bf16-mixed``; ``auto`` | ``cpu`` | ``gpu``.
    compile
        See :func:`nuclass.training.compiling.compiles`.
    views, augment, seed
        Copies under augmentation of the cells chosen for them, their strengths and seed.
    truncated
        A flaw of the original (protocol: truncated_context): windows are read at level 0 whatever ``read_level``
        says, reduced by :func:`nuclass.data.image_ops.reduce_truncated` and normalised in bfloat16.
    """

    window: Literal["local", "global"] = "global"
    read_level: int = 0
    pooling: str = "cls"
    batch_size: int = 64
    precision: str = "auto"
    accelerator: str = "auto"
    compile: Compile = False
    workers: int = 0
    views: int = 0
    augment: Augment = field(default_factory=Augment)
    seed: int = 42
    truncated: bool = False

    @property
    def level(self) -> int:
        """The pyramid level that windows are read from."""
        return 0 if self.truncated else self.read_level


def pool_tokens(tokens: Tensor, prefix: int, pooling: str) -> Tensor:
    """Return one vector (B, K) of tokens (B, T, D) after the final norm.

    ``cls``: the class token (what transformers calls ``pooler_output``). ``mean``: mean of the patch tokens,
    registers left out. ``center``: mean of the four patch tokens around the middle (of an odd grid
    the one there). Joined with ``+``.
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
            parts.append(grid[:, _middle(side), _middle(side)].mean((1, 2)))
    return torch.cat(parts, 1)


def pool_spatial(backbone: Backbone, spatial: Tensor, pooling: str) -> Tensor:
    """Return one vector (B, K) of a backbone's tokens (B, T, D) or feature map (B, C, h, w).

    Tokens: see :func:`pool_tokens`. A map has no ``cls``; its ``mean`` and ``center`` are those of its places.
    """
    if pooling == "native":
        return backbone.pool_tokens(spatial)
    if backbone.kind == "tokens":
        return pool_tokens(spatial, backbone.prefix_tokens, pooling)
    inner = spatial[:, :, _middle(spatial.shape[2]), _middle(spatial.shape[3])]
    return torch.cat([(spatial if name == "mean" else inner).mean((2, 3)) for name in pooling.split("+")], 1)


def _middle(side: int) -> slice:
    """Return the two places in the middle of an even side, the one of an odd side."""
    return slice((side - 1) // 2, side // 2 + 1)


def check_pooling(backbone: Backbone, pooling: str) -> None:
    """Raise when a backbone cannot be pooled in this way."""
    names = pooling.split("+")
    fits = set(names) <= set(POOLINGS) and (names == ["native"] or "native" not in names)
    if fits and ("cls" not in names or backbone.prefix_tokens):
        return
    valid = [name for name in POOLINGS if name != "cls" or backbone.prefix_tokens]
    raise UserError(
        "A backbone cannot be pooled in this way",
        where=f"pooling of {backbone.settings['name']}",
        found=pooling,
        expected=f"{valid[0]}, or {', '.join(valid[1:])} joined by +",
        fix="change the pooling; a class token is there only in some vision transformers",
    )


def normalised_in_bf16(backbone: Backbone, x: Tensor) -> Tensor:
    """Return images that the backbone's own normalisation turns into those normalised in bfloat16, float32.

    As the original does it, every step is rounded to bfloat16 (8 bits of precision); ``x`` (B, 3, S, S) in [0, 1].
    """
    half = (x.bfloat16() - backbone.mean.bfloat16()) / backbone.std.bfloat16()
    return half.float() * backbone.std + backbone.mean


def feature_key(backbone: Backbone, study: Study, settings: Embedding, name: str) -> FeatureKey:
    """Return what plain features of ``backbone``, on the device where it is, depend on.

    ``name`` is that of the backbone, as a reader should know it.
    """
    from nuclass.data.features import FeatureKey

    return FeatureKey(
        backbone=name,
        sha256=network_hash(backbone),
        window_px=study.windows[settings.window],
        mpp=study.mpp,
        read_level=settings.level,
        input_px=backbone.input_px,
        pooling=settings.pooling,
        mean=tuple(round(float(value), 6) for value in backbone.mean.flatten()),
        std=tuple(round(float(value), 6) for value in backbone.std.flatten()),
        precision=computes_in(backbone.mean.device, settings.precision),
        truncated=settings.truncated,
    )


def network_hash(backbone: Backbone) -> str:
    """Return a hash of a network's weights and of what its output depends on besides, such as the number of heads."""
    config = getattr(backbone.net, "config", None)
    if backbone.library == "transformers":
        rest: dict[str, Any] = {name: getattr(config, name, None) for name in _UNSEEN}
    else:
        rest = {name: backbone.settings.get(name) for name in ("name", "kwargs")}
    if (pool := backbone.settings.get("pool") or "native") != "native":
        # The same weights give other features.
        rest["pool"] = pool
    return hashlib.sha256(f"{state_hash(backbone)} {json.dumps(rest, sort_keys=True)}".encode()).hexdigest()


def embed_slide(
    backbone: Backbone,
    frame: pd.DataFrame,
    study: Study,
    settings: Embedding,
    out: Path,
    work: Path,
    *,
    name: str,
    views_out: Path | None = None,
    augmented: NDArray[np.bool_] | None = None,
) -> FeatureKey:
    """Write the features of one slide's cells, float16 (N, K) in tile order; returns their key.

    Parameters
    ----------
    backbone
        Is frozen: set to eval mode and moved to the device of ``settings.accelerator``.
    frame
        Cells of one slide, as :func:`nuclass.data.load_cells` gives them, in any order.
    study
        Where the slide's windows come from, and their sides.
    out
        HDF5 file, see :mod:`nuclass.data.features`.
    work
        Folder of the running state, from which a killed pass goes on; removed at the end.
    name
        Name of the backbone, kept in the key.
    views_out, augmented
        File of the copies under augmentation, (M, V, K), of the cells marked in ``augmented`` (a row of ``frame``
        each).

    Raises
    ------
    UserError
        The backbone cannot be pooled so, the slide has no windows, a feature is not finite, or the disk is full.
    """
    from nuclass.data.feature_cache import Output, cache_features, digest, part_size

    check_pooling(backbone, settings.pooling)
    slides = frame["slide"].unique()
    if len(slides) != 1:
        raise ValueError(f"A feature file is of one slide, not of {len(slides)}")
    slide = str(slides[0])
    with study.reader() as reader:
        reader.windows(slide)
    backbone = backbone.to(choose_device(settings.accelerator)).eval().requires_grad_(False)
    mask = np.zeros(len(frame), bool) if augmented is None or views_out is None else np.asarray(augmented)
    ordered = by_place(frame.assign(_augmented=mask))
    mask = ordered.pop("_augmented").to_numpy(bool)
    key = feature_key(backbone, study, settings, name)
    outputs = {"features": Output(out, key)}
    if views_out is not None:
        changes = tuple(item for item in asdict(settings.augment).items() if item != ("black_corners", False))
        changed = replace(key, views=settings.views, augment=changes, seed=settings.seed)
        outputs["views"] = Output(views_out, changed, mask)
    part_cells = part_size(settings.batch_size)
    code = code_of_job()
    steps = _Pass(backbone, ordered, study, settings, mask if views_out is not None else None, part_cells)
    cache_features(
        work,
        ordered[CELL_ID].to_numpy(),
        outputs,
        steps.batches,
        part_cells=part_cells,
        depends={
            "places": digest(ordered[["x_px", "y_px"]].to_numpy(np.float64)),
            "pixels": source_digest(study.source(slide)),
            "batch size": settings.batch_size,
            **({"code": code} if code else {}),
            **({"compiled": True} if steps.compiled else {}),
        },
    )
    return key


class _Pass:
    """One pass over the cells of a slide: batches of windows to batches of features."""

    def __init__(
        self,
        backbone: Backbone,
        frame: pd.DataFrame,
        study: Study,
        settings: Embedding,
        augmented: NDArray[np.bool_] | None,
        part_cells: int,
    ) -> None:
        self.backbone, self.frame, self.study, self.settings = backbone, frame, study, settings
        self.augmented, self.part_cells = augmented, part_cells
        self.generators: list[torch.Generator] = []
        self.compiled = compiles(settings.compile, backbone.mean.device, backbone, len(frame))
        self.spatial: Callable[[Tensor], Tensor] = backbone.spatial
        if self.compiled:
            self.spatial = torch.compile(backbone.spatial)

    def batches(self, start: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Give features, and views where wanted, from cell ``start`` on; ``start`` begins a part."""
        from nuclass.data import WindowDataset, make_loader

        rows = self.frame.iloc[start:]
        none = np.zeros(len(rows), np.int64)
        side, seen = self.study.windows[self.settings.window], self.backbone.input_px
        out = side if self.settings.truncated else seen
        dataset = WindowDataset(self.study.reader(), rows, side, self.settings.level, out, none, none)
        on_gpu = self.backbone.mean.device.type == "cuda"
        loader = make_loader(dataset, self.settings.batch_size, num_workers=self.settings.workers, pin_memory=on_gpu)
        with Progress(len(self.frame), f"{self.settings.window} features", "cells", done=start) as progress:
            row = start
            for batch in loader:
                if row % self.part_cells == 0:
                    self._seed(row // self.part_cells)
                yield self._embed(batch["image"], row)
                row += len(batch["image"])
                progress.advance(len(batch["image"]))

    def _seed(self, part: int) -> None:
        """Start the random streams of a part, so that a pass that goes on there gives the same numbers."""
        base = self.settings.seed * 1009 + part * 1_000_003
        self.generators = [torch.Generator().manual_seed(base + view) for view in range(self.settings.views)]

    @torch.inference_mode()
    def _embed(self, image: Tensor, row: int) -> dict[str, NDArray[Any]]:
        image = image.to(self.backbone.mean.device, non_blocking=True)
        if self.settings.truncated:
            image = reduce_truncated(image, self.backbone.input_px)
        plain = self._pooled(to_unit(image))
        result = {"features": plain.numpy()}
        if self.augmented is not None:
            part = image[torch.tensor(self.augmented[row : row + len(image)]).to(image.device)]
            views = torch.zeros(len(part), len(self.generators), plain.shape[1], dtype=torch.half)
            if len(part):
                for view, generator in enumerate(self.generators):
                    views[:, view] = self._pooled(augment_images(part, self.settings.augment, generator))
            result["views"] = views.numpy()
        return result

    def _pooled(self, x: Tensor) -> Tensor:
        if self.settings.truncated:
            x = normalised_in_bf16(self.backbone, x)
        rows = len(x)
        if self.compiled and rows < self.settings.batch_size:
            x = x[filled(rows, self.settings.batch_size).to(x.device)]
        with failures_told(f"{self.settings.window} features"), autocast(x.device, self.settings.precision):
            spatial = self.spatial(x)[:rows]
        return pool_spatial(self.backbone, spatial.float(), self.settings.pooling).half().cpu()
