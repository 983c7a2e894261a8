"""No cell, slide or patient that a model has seen may be used to judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID

_SEEN = ("train_cells", "val_cells")


def seen_cells(checkpoint: str | Path) -> dict[str, dict[str, set[str]]]:
    """Return the cells a checkpoint was trained and selected on: ``{train_cells | val_cells: {slide: ids}}``.

    Tensors are mapped, not read, and nothing but plain data is unpickled.

    Raises
    ------
    UserError
        When the checkpoint does not say which cells it has seen.
    """
    import torch

    data: Mapping[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    missing = [key for key in _SEEN if key not in data]
    if missing:
        raise UserError(
            "A checkpoint does not say which cells it was trained on, so a leak cannot be ruled out",
            where=checkpoint,
            found=f"keys {sorted(data)}",
            expected=missing,
            fix="train it again with this workflow",
        )
    return {key: {str(slide): set(map(str, ids)) for slide, ids in data[key].items()} for key in _SEEN}


def check_no_overlap(
    cells: pd.DataFrame,
    seen: Mapping[str, Mapping[str, set[str]]],
    *,
    patients: Mapping[str, str] | None = None,
    where: object = None,
) -> None:
    """Raise when any evaluated cell, its slide or its patient was used in training or model selection.

    Parameters
    ----------
    cells
        Evaluated cells with ``slide`` and ``cell_id``.
    seen
        From :func:`seen_cells`.
    patients
        Patient of each slide, for evaluated and training slides.
    where
        The checkpoint, for the message.
    """
    patients = patients or {}
    training = sorted({slide for by_slide in seen.values() for slide, ids in by_slide.items() if ids})
    for slide, group in cells.groupby("slide"):
        for key, by_slide in seen.items():
            shared = by_slide.get(str(slide), set()).intersection(group[CELL_ID])
            if shared:
                raise UserError(
                    f"{len(shared)} evaluated cells are among the checkpoint's {key.replace('_', ' ')}",
                    where=f"{where}, slide {slide}",
                    found=sorted(shared)[:3],
                    expected="no cell in common",
                    fix="evaluate on a slide that was not trained on",
                )
        if slide in training:
            raise UserError(
                "An evaluated slide is one of the checkpoint's training slides",
                where=where,
                found=slide,
                expected=f"a slide other than {training}",
                fix="set its role to cohort and train again, or evaluate another slide",
            )
        same = _same_patient(str(slide), training, patients)
        if same:
            raise UserError(
                "An evaluated slide comes from a patient of the training slides",
                where=where,
                found=f"{slide}: patient {patients[str(slide)]}, also {same}",
                expected="patients on one side only",
                fix="move all slides of a patient to the same role in the slide sheet",
            )


def _same_patient(slide: str, training: Sequence[str], patients: Mapping[str, str]) -> list[str]:
    patient = str(patients.get(slide, "") or "")
    if not patient or patient == "nan":
        return []
    return [other for other in training if str(patients.get(other, "") or "") == patient]
