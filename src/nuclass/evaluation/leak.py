"""No cell, slide or patient that a model has seen may be used to judge it."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, TRAIN, VAL

_log = get_logger(__name__)


@dataclass(frozen=True)
class Seen:
    """What a checkpoint says of itself.

    Attributes
    ----------
    cells
        The cells it was trained and selected on: ``{train | val: {slide: ids}}``.
    protocol
        The flaws of the original that it was trained with, see :mod:`nuclass.core.protocol`.
    classes
        Its classes, in order.
    """

    cells: dict[str, dict[str, set[str]]]
    protocol: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def read_seen(checkpoint: str | Path) -> Seen:
    """Return the cells a checkpoint was trained and selected on, and with which flaws.

    Only the plain data of the file is read, without its tensors and without loading torch, which would
    take longer than the evaluation itself. The keys are ``cells``: ``{slide: {split: ids}}``, and ``protocol``.

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
    by_split = {
        split: {str(slide): set(map(str, parts.get(split, ()))) for slide, parts in cells.items()}
        for split in (TRAIN, VAL)
    }
    flaws = tuple(name for name, on in (data.get("protocol") or {}).items() if on)
    return Seen(by_split, flaws, tuple(data.get("classes") or ()))


def check_classes(found: Sequence[str], seen: Seen, *, where: object, checkpoint: object) -> None:
    """Raise when predictions have other classes than the checkpoint they are said to come from."""
    if not seen.classes or tuple(found) == seen.classes:
        return
    more, less = (sorted(set(a) - set(b)) for a, b in ((found, seen.classes), (seen.classes, found)))
    told = [f"also {', '.join(more)}"] * bool(more) + [f"not {', '.join(less)}"] * bool(less)
    raise UserError(
        "Predictions have other classes than the checkpoint",
        where=f"{where}; {checkpoint}",
        found=f"{len(found)} classes: " + ("; ".join(told) or "the same names in another order"),
        expected=", ".join(seen.classes),
        fix="predict again with this checkpoint",
    )


def seen_cells(checkpoint: str | Path) -> dict[str, dict[str, set[str]]]:
    """Return :attr:`Seen.cells` of a checkpoint."""
    return read_seen(checkpoint).cells


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
    test_as_val: bool = False,
) -> int:
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
    test_as_val
        Whether the checkpoint was trained with this flaw of the original: cells that chose it may then be evaluated,
        with a warning. Its train cells, other cells of its slides and other slides of its patients may not.

    Returns
    -------
    Number of evaluated cells that chose the model; 0 but for ``test_as_val``.
    """
    patients = patients or {}
    chosen_by = _chosen_by(cells, seen) if test_as_val else pd.Series(False, index=cells.index)
    if chosen_by.any():
        _log.warning(
            "%s: %d of %d evaluated cells chose the model and its calibration, so the numbers are too good "
            "(protocol: test_as_val)", where, int(chosen_by.sum()), len(cells),
        )  # fmt: skip
        cells = cells[~chosen_by]
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
    return int(chosen_by.sum())


def _chosen_by(cells: pd.DataFrame, seen: Mapping[str, Mapping[str, set[str]]]) -> pd.Series[bool]:
    """Mark the evaluated cells that are among the val cells of a checkpoint."""
    result = pd.Series(False, index=cells.index)
    for slide, group in cells.groupby("slide", observed=True):
        result.loc[group.index] = group[CELL_ID].isin(seen.get(VAL, {}).get(str(slide), set()))
    return result


def _same_patient(slide: str, training: Sequence[str], patients: Mapping[str, str]) -> list[str]:
    patient = str(patients.get(slide, "") or "")
    if not patient or patient == "nan":
        return []
    return [other for other in training if str(patients.get(other, "") or "") == patient]
