"""No cell, slide or patient that a model has seen may be used to judge it."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID, TRAIN, VAL


def seen_cells(checkpoint: str | Path) -> dict[str, dict[str, set[str]]]:
    """Return the cells a checkpoint was trained and selected on: ``{train | val: {slide: ids}}``.

    Only the plain data of the file is read, without its tensors and without loading torch, which would
    take longer than the evaluation itself. The key is ``cells``: ``{slide: {split: ids}}``.

    Raises
    ------
    UserError
        When the file is not a checkpoint, or does not say which cells it has seen.
    """
    data = _plain_data(Path(checkpoint))
    cells = data.get("cells")
    if not cells:
        raise UserError(
            "A checkpoint does not say which cells it was trained on, so a leak cannot be ruled out",
            where=checkpoint,
            found=f"keys {sorted(data)}",
            expected="cells: slide -> split -> cell ids",
            fix="train it again with this workflow",
        )
    return {
        split: {str(slide): set(map(str, by_split.get(split, ()))) for slide, by_split in cells.items()}
        for split in (TRAIN, VAL)
    }


class _PlainUnpickler(pickle.Unpickler):
    """Read plain values; put ``None`` for what belongs to torch, refuse everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module.split(".")[0] == "torch":
            return _nothing
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")

    def persistent_load(self, pid: Any) -> None:
        """Leave a tensor's storage where it is."""


def _nothing(*_: Any) -> None:
    return None


def _plain_data(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            data = _PlainUnpickler(io.BytesIO(archive.read(name))).load()
    except FileNotFoundError as error:
        raise UserError("A checkpoint is missing", where=path, fix="train the model first") from error
    except (zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            "A file is not a checkpoint of this workflow",
            where=path,
            found=str(error) or type(error).__name__,
            expected="plain values and tensors, as written by torch.save",
        ) from error
    return dict(data)


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
                    f"{len(shared)} evaluated cells are among the checkpoint's {key} cells",
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
