"""From the study's files to loaders: training cells, vocabulary, windows, cached context features."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import TRAIN, VAL
from nuclass.data.study import Study

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from nuclass.data import InMemoryWindows, Vocabulary, WindowDataset

_log = get_logger(__name__)


def load_training_cells(study: Study) -> tuple[pd.DataFrame, pd.DataFrame, Vocabulary]:
    """Return the labelled train cells, the labelled val cells, and the vocabulary of the train cells.

    Cells of val whose class no training cell has are left out and counted in the log.

    Raises
    ------
    UserError
        When a split is empty or training has fewer than two classes.
    """
    from nuclass.data import Vocabulary, load_cells

    frame = by_place(load_cells(study.slides, study.results, (TRAIN, VAL)))
    names = ", ".join(row["slide"] for row in study.slides)
    for split in (TRAIN, VAL):
        if not (frame["split"] == split).any():
            raise UserError(
                f"There is no labelled cell in the split '{split}'",
                where=f"slides {names}",
                fix="check the labels' summary and the fractions under 'splits'",
            )
    train = frame[frame["split"] == TRAIN].reset_index(drop=True)
    vocabulary = Vocabulary.from_frame(train, unknown_organ=True)
    if len(vocabulary.classes) < 2:
        raise UserError(
            "Training needs at least two classes",
            where=f"slides {names}",
            found=f"only {vocabulary.classes[0]}",
            fix="check the labels' summary of these slides",
        )
    val = known_classes(frame[frame["split"] == VAL], vocabulary, "val")
    if val.empty:
        raise UserError("No val cell has a class that training saw", where=f"slides {names}")
    _log.info("%d train and %d val cells, %d classes", len(train), len(val), len(vocabulary.classes))
    return train, val, vocabulary


def by_place(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows slide by slide, neighbours after each other, so that each tile is decoded about once."""
    from nuclass.patches.windows import locality_order, slide_codes

    _, codes = slide_codes(frame)
    return frame.iloc[locality_order(codes, frame[["x_px", "y_px"]].to_numpy())].reset_index(drop=True)


def known_classes(frame: pd.DataFrame, vocabulary: Vocabulary, what: str) -> pd.DataFrame:
    """Return the rows whose class the vocabulary has; the others are counted in the log."""
    unseen = ~frame["class"].isin(vocabulary.classes)
    if unseen.any():
        counts = ", ".join(
            f"{name} {n}" for name, n in frame.loc[unseen, "class"].astype(object).value_counts().items()
        )
        _log.warning("Left out of %s, because no training cell has their class: %s", what, counts)
    return frame[~unseen].reset_index(drop=True)


def local_windows(
    frame: pd.DataFrame,
    study: Study,
    vocabulary: Vocabulary,
    *,
    read_level: int,
    input_px: int,
    memory_mb: float,
    extra: dict[str, Any] | None = None,
    description: str = "local windows",
) -> InMemoryWindows | WindowDataset:
    """Return the local windows of ``frame`` as a dataset, in memory where they fit."""
    from nuclass.data import choose_dataset

    return choose_dataset(
        frame,
        study.reader(),
        vocabulary,
        size=study.windows["local"],
        level=read_level,
        out_px=input_px,
        memory_mb=memory_mb,
        extra=extra,
        description=description,
    )


def context_features(frame: pd.DataFrame, study: Study, *, views: bool) -> Tensor:
    """Return the cached context features of ``frame``'s cells as float16 (N, 1 + V, K), plain ones first.

    Without ``views``, or where none were cached, V is 0. Beside this array only a block of one file is held.
    """
    from nuclass.data.features import feature_shape, read_features
    from nuclass.patches.windows import slide_codes

    slides, codes = slide_codes(frame)
    copies = {slide: study.views(slide) for slide in slides if views and study.views(slide).is_file()}
    check_views(study, copies)
    shapes = {
        slide: (
            1 + (feature_shape(copies[slide])[1] if slide in copies else 0),
            feature_shape(study.features(slide))[1],
        )
        for slide in slides
    }
    if len(set(shapes.values())) != 1:
        raise UserError(
            "Context features differ between slides",
            where=study.features("<slide>"),
            found=", ".join(map(str, sorted(set(shapes.values())))),
            expected="one number of views and one width",
            fix="compute the features of all slides again",
        )
    result = np.empty((len(frame), *next(iter(shapes.values()))), np.float16)
    ids = frame["cell_id"].to_numpy()
    for code, slide in enumerate(slides):
        rows = np.flatnonzero(codes == code)
        read_features(study.features(slide), ids[rows], out=result[:, 0], rows=rows)
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
    """Return a hash of what a model is trained on: cells, their classes and places, scale and windows."""
    import pandas as pd

    digest = hashlib.sha256(repr((study.mpp, sorted(study.windows.items()))).encode())
    for frame in frames:
        for column in ("slide", "class", "split"):
            codes, names = pd.factorize(frame[column])
            digest.update("\n".join((column, *map(str, names))).encode() + codes.astype(np.int64).tobytes())
        digest.update("\n".join(frame["cell_id"]).encode())
        digest.update(frame[["x_px", "y_px"]].to_numpy(np.float64).tobytes())
    return digest.hexdigest()


def cells_by_slide(*frames: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """Return ``{slide: {split: [cell ids]}}``, as a checkpoint stores it."""
    result: dict[str, dict[str, list[str]]] = {}
    for frame in frames:
        for (slide, split), part in frame.groupby(["slide", "split"], sort=True, observed=True):
            result.setdefault(str(slide), {})[str(split)] = part["cell_id"].astype(str).tolist()
    return result
