"""No cell, slide or patient that a model has seen may be used to judge it."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, TRAIN, VAL

_log = get_logger(__name__)
SAME_CELLS = 0.1
"""Share of the smaller of two sets of ids above which they are of the same cells."""


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
    organs
        Its organs.
    slides
        Organ of each training slide.
    mpp
        Micrometres per px of the windows it takes; None where it does not say.
    """

    cells: dict[str, dict[str, set[str]]]
    protocol: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    organs: tuple[str, ...] = ()
    slides: Mapping[str, str] = field(default_factory=dict)
    mpp: float | None = None

    @property
    def trained_on(self) -> list[str]:
        """The slides with cells that it was trained or selected on."""
        return sorted({slide for by_slide in self.cells.values() for slide, ids in by_slide.items() if ids})


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
    slides = data.get("slides")
    return Seen(
        by_split,
        flaws,
        tuple(data.get("classes") or ()),
        tuple(data.get("organs") or ()),
        {str(slide): str(organ) for slide, organ in slides.items()} if isinstance(slides, dict) else {},
        float(data["mpp"]) if data.get("mpp") else None,
    )


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


def check_study(seen: Seen, training: Mapping[str, str], *, checkpoint: object) -> None:
    """Raise when a checkpoint was trained on other slides than those of the study, or on other organs.

    Whether a patient of the cohorts was trained on cannot be told of a slide that the study does not know.
    ``training`` maps the study's training slides to their organs; an empty organ is not compared.
    """
    strange = [slide for slide in seen.trained_on if slide not in training]
    if strange:
        raise UserError(
            "A checkpoint of another study: it was trained on slides that are not training slides of this one",
            where=checkpoint,
            found=", ".join(strange),
            expected=f"among {', '.join(sorted(training))}",
            fix="train the model again with this study, or evaluate it with its own",
        )
    for slide, organ in training.items():
        before = seen.slides.get(slide, "")
        if organ and before and slide in seen.trained_on and before != organ:
            raise UserError(
                "A checkpoint of another study: one of its training slides was of another organ",
                where=f"{checkpoint}, slide {slide}",
                found=before,
                expected=organ,
                fix="train the model again after a change of the slide sheet",
            )


def check_same_study(models: Mapping[str, Seen]) -> None:
    """Raise when checkpoints that are to be compared come from different studies.

    They must agree in classes, in organs, in the slides they were trained on, and, slide by slide, in most of the train
    cells: the same name may stand for another slide elsewhere.
    """
    first_name, first = next(iter(models.items()))
    for name, seen in models.items():
        for what, a, b in (
            ("classes", seen.classes, first.classes),
            ("organs", sorted(seen.organs), sorted(first.organs)),
            ("training slides", seen.trained_on, first.trained_on),
        ):
            if a and b and a != b:
                raise UserError(
                    f"Two checkpoints of different studies: they differ in their {what}",
                    found=f"{name}: {', '.join(a)}",
                    expected=f"{first_name}: {', '.join(b)}",
                    fix="train both models with the same study",
                )
        for slide in first.trained_on:
            a_ids, b_ids = (s.cells.get(TRAIN, {}).get(slide, set()) for s in (seen, first))
            least = min(len(a_ids), len(b_ids))
            if least and len(a_ids & b_ids) < least / 2:
                raise UserError(
                    "Two checkpoints of different studies: their cells of a slide differ",
                    where=f"slide {slide}",
                    found=f"{name} and {first_name} share {len(a_ids & b_ids)} train cells",
                    expected=f"most of {least}",
                    fix="train both models with the same study",
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

    A slide under another name is found by its cells where ids tell them apart: a tenth of the smaller set in common is
    too much for ids such as ``ccjgajhp-1``, whose letters are as good as random. Ids that only count (``12``,
    ``cell_12``) are the same in every slide and tell nothing.

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
        _check_other_names(str(slide), set(group[CELL_ID].astype(str)), seen, where)
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


def _check_other_names(slide: str, ids: set[str], seen: Mapping[str, Mapping[str, set[str]]], where: object) -> None:
    """Raise when a slide's cells are those of a training slide that goes by another name."""
    for other in sorted({name for by_slide in seen.values() for name in by_slide} - {slide}):
        known: set[str] = set().union(*(by_slide.get(other, set()) for by_slide in seen.values()))
        shared = ids & known
        if len(shared) > SAME_CELLS * min(len(ids), len(known)) and _telling(shared):
            raise UserError(
                "The same cells under another slide's name: the checkpoint was trained on an evaluated slide",
                where=f"{where}, slide {slide}",
                found=f"{len(shared)} of {len(ids)} cell ids are those of {other}, the first: {min(shared)}",
                expected="a slide that was not trained on",
                fix="give one data set one name, and one role, in the slide sheet",
            )


def _telling(ids: set[str]) -> bool:
    """Return whether ids are more than a count: most differ even without their digits."""
    return len({re.sub(r"\d", "", name) for name in ids}) > len(ids) / 2 and len(ids) > 1


def _same_patient(slide: str, training: Sequence[str], patients: Mapping[str, str]) -> list[str]:
    patient = str(patients.get(slide, "") or "")
    if not patient or patient == "nan":
        return []
    return [other for other in training if str(patients.get(other, "") or "") == patient]
