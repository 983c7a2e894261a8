"""What rows of the sheet of slides may not have in common: names, data, patients on two sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from nuclass.core.errors import UserError
from nuclass.core.sheets import Row

ALL = "all"
"""All cohorts together, where results are told by cohort."""


def across_rows(
    path: str, rows: Sequence[Row], data: Sequence[str], held_out: bool = False, complete: bool = True
) -> list[UserError]:
    """Return the faults of rows against each other.

    Parameters
    ----------
    path
        The sheet, for messages.
    rows
        Its rows, and those that the environment gave.
    data
        For each row what tells its data from that of others, such as the place; ``""`` where it is not known.
    held_out
        Training slides will be held out by the settings, so the sheet needs no cohort of its own.
    complete
        All rows that were asked for could be read, so a role that none has is a fault of the sheet.
    """
    faults = [*_same_data(path, rows, data), *_names(path, rows, data), *_patients(path, rows)]
    return [*faults, *_roles(path, rows, held_out)] if complete else faults


def place_of(path: str, *rows: Row) -> str:
    """Return where rows stand: lines of the sheet, or what of the environment gave them."""
    lines = [row.line for row in rows if not row.origin]
    told = [row.origin for row in rows if row.origin]
    if lines:
        told.append(f"{path}, line{'s' * (len(lines) > 1)} {' and '.join(map(str, lines))}")
    return " and ".join(told)


def _same_data(path: str, rows: Sequence[Row], data: Sequence[str]) -> Iterator[UserError]:
    """Tell of two slides that are one: each is cut on its own, so what one learns the other validates on."""
    for (first, its), (second, other) in combinations(zip(rows, data, strict=True), 2):
        pair = first.values, second.values
        if its and its == other and any(values["role"] != "cohort" for values in pair):
            yield UserError(
                "two slides have the same data",
                where=place_of(path, first, second),
                found=" and ".join(f"'{v['slide']}' ({v['role']}), {v['path'] or v['dataset']}" for v in pair),
                expected="each data set once: what a model learnt is no test of it",
                fix="leave one out. train/ and test/ of a data set are one slide: name the folder that holds both",
            )


def _names(path: str, rows: Sequence[Row], data: Sequence[str]) -> Iterator[UserError]:
    seen: dict[str, tuple[Row, str]] = {}
    for row, its in zip(rows, data, strict=True):
        name = row.values["slide"]
        if name == ALL:
            yield UserError(
                f"a slide cannot be named '{ALL}'",
                where=place_of(path, row),
                expected="another name; this one stands for all cohorts together",
                fix="give the slide another name",
            )
        first, of_first = seen.setdefault(name, (row, its))
        # That two rows have the same data is told already.
        if first is not row and not (its and its == of_first):
            made = bool(first.origin or row.origin)
            yield UserError(
                f"the slide '{name}' stands twice",
                where=place_of(path, first, row),
                expected="each slide once",
                fix="slides of the environment are named after their folders: rename one, or write it into the sheet"
                if made
                else "delete one row, or give it another name",
            )


def _patients(path: str, rows: Sequence[Row]) -> Iterator[UserError]:
    sides: dict[str, dict[str, Row]] = {}
    for row in rows:
        sides.setdefault(row.values["patient"], {}).setdefault(row.values["role"], row)
    for patient, by_role in sides.items():
        if patient and {"train", "cohort"} <= by_role.keys():
            train, cohort = by_role["train"], by_role["cohort"]
            yield UserError(
                f"the patient '{patient}' stands on both sides",
                where=place_of(path, train, cohort),
                found=f"'{train.values['slide']}' is for training, '{cohort.values['slide']}' is a cohort",
                expected="all slides of a patient in one role: what a model learnt is no test of it",
                fix="give both slides the same role, or correct the patient",
            )


def _roles(path: str, rows: Sequence[Row], held_out: bool) -> Iterator[UserError]:
    roles = {row.values["role"] for row in rows}
    for role, text in (("train", "nothing to learn from"), ("cohort", "nothing held out to report on")):
        if rows and role not in roles and not (role == "cohort" and held_out):
            yield UserError(
                f"the sheet has no slide with role '{role}'",
                where=path,
                expected=f"at least one; without it there is {text}",
            )
