"""What training asks of the study's files beside its windows: cached context features, hashes, lists of cells."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.files import sha256
from nuclass.data.study import Study

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


def context_features(frame: pd.DataFrame, study: Study, *, views: bool, gate: bool = False) -> Tensor:
    """Return the cached context features of ``frame``'s cells as float16 (N, 1 + V, K), plain ones first.

    Without ``views``, or where none were cached, V is 0. Beside this array only a block of one file is held.
    ``gate`` reads those of :meth:`nuclass.data.study.Study.gate_features`, of which there are no views.
    """
    from nuclass.data.features import feature_shape, read_features
    from nuclass.patches.windows import slide_codes

    slides, codes = slide_codes(frame)
    plain = {slide: study.gate_features(slide) if gate else study.features(slide) for slide in slides}
    copies = {slide: study.views(slide) for slide in slides if views and not gate and study.views(slide).is_file()}
    check_views(study, copies)
    shapes = {
        slide: (
            1 + (feature_shape(copies[slide])[1] if slide in copies else 0),
            feature_shape(plain[slide])[1],
        )
        for slide in slides
    }
    if len(set(shapes.values())) != 1:
        raise UserError(
            "Context features differ between slides",
            where=next(iter(plain.values())).parent,
            found=", ".join(map(str, sorted(set(shapes.values())))),
            expected="one number of views and one width",
            fix="compute the features of all slides again",
        )
    result = np.empty((len(frame), *next(iter(shapes.values()))), np.float16)
    ids = frame["cell_id"].to_numpy()
    for code, slide in enumerate(slides):
        rows = np.flatnonzero(codes == code)
        read_features(plain[slide], ids[rows], out=result[:, 0], rows=rows)
        if slide in copies:
            read_features(copies[slide], ids[rows], out=result[:, 1:], rows=rows)
    return torch.from_numpy(result)


def check_views(study: Study, copies: dict[str, Path]) -> None:
    """Raise when features under augmentation are not copies of the plain ones, or were changed in two ways."""
    from nuclass.data.features import check_key, read_key

    first = None
    for slide, path in copies.items():
        key = read_key(path)
        what = "Features under augmentation are not copies of the plain ones"
        check_key(key.plain(), read_key(study.features(slide)), what, path, "compute both again")
        first = first or key
        what = "Features of two slides were augmented in different ways"
        check_key(key, first, what, path, "compute the features of all slides again")


def data_hash(study: Study, *frames: pd.DataFrame) -> str:
    """Return a hash of what a model is trained on: cells, their classes, organs and places, pixels, scale, windows."""
    import pandas as pd

    digest = hashlib.sha256(repr((study.mpp, sorted(study.windows.items()))).encode())
    for frame in frames:
        for column in ("slide", "organ", "class", "split"):
            codes, names = pd.factorize(frame[column])
            digest.update("\n".join((column, *map(str, names))).encode() + codes.astype(np.int64).tobytes())
        digest.update("\n".join(frame["cell_id"]).encode())
        digest.update(frame[["x_px", "y_px"]].to_numpy(np.float64).tobytes())
    for slide in sorted({str(slide) for frame in frames for slide in frame["slide"].unique()}):
        digest.update(source_digest(study.source(slide)).encode())
    return digest.hexdigest()


def source_digest(path: Path) -> str:
    """Return what changes when a slide's store, or the manifest of its patch files, is written again."""
    file = path if path.is_file() else path / "zarr.json"
    return f"{sha256(file)} {file.stat().st_mtime_ns}"


def cells_by_slide(*frames: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """Return ``{slide: {split: [cell ids]}}``, as a checkpoint stores it."""
    result: dict[str, dict[str, list[str]]] = {}
    for frame in frames:
        for (slide, split), part in frame.groupby(["slide", "split"], sort=True, observed=True):
            result.setdefault(str(slide), {})[str(split)] = part["cell_id"].astype(str).tolist()
    return result


def stain_by_slide(study: Study, frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return how strongly each slide is stained, by :func:`nuclass.data.stain.stain_of`, as a checkpoint stores it."""
    from nuclass.data.stain import stain_of

    with study.reader() as reader:
        return {
            str(slide): stain_of(reader, part, study.windows["local"])
            for slide, part in frame.groupby("slide", sort=True, observed=True)
        }
