"""Whole slides held out of training: by name, or fold by fold; of a slide, a patient or an organ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nuclass.core.errors import UserError, closest
from nuclass.core.split_settings import NO_HOLDOUT

if TYPE_CHECKING:
    import pandas as pd

TRAINING, COHORT = "train", "cohort"
SHEET_ROLE = "sheet_role"
Locate = Callable[[Sequence[str]], Any]


def apply_holdout(slides: pd.DataFrame, splits: Mapping[str, Any], locate: Locate | None = None) -> pd.DataFrame:
    """Give held-out slides the role ``cohort``; all that follows goes by the role.

    Parameters
    ----------
    slides
        The sheet, indexed by slide, with ``role``, ``patient`` and ``organ``.
    splits
        The section of the settings, checked by :func:`nuclass.core.split_settings.split_faults`: ``hold_out`` with
        ``leave_out`` or with ``folds`` and ``fold``, and ``seed``.
    locate
        Gives the place of a key, for errors.

    Returns
    -------
    A copy with the roles as they are to be used, and with those of the sheet as ``sheet_role``. A cohort of the
    sheet stays one. Folds hold whole groups (slides, patients or organs) of the training slides, balanced by the
    number of slides; the same seed deals the same folds whichever is asked for, so each slide is held out in
    exactly one of them.

    Raises
    ------
    UserError
        A name is not known, there are more folds than groups, nothing is left to train on, or a patient would
        stand on both sides.
    """
    out = slides.assign(**{SHEET_ROLE: slides["role"]})
    by = splits.get("hold_out", NO_HOLDOUT)
    if by == NO_HOLDOUT:
        return out
    place = locate or (lambda key: "config, " + ": ".join(key))
    group = slides.index.to_series() if by == "slide" else slides[by]
    learnt = slides["role"] == TRAINING
    _check_known(group[learnt], by, place)
    if splits.get("leave_out"):
        chosen = _named(group, learnt, list(splits["leave_out"]), by, place)
    else:
        chosen = _dealt(group[learnt], splits, by, place)
    out.loc[learnt & group.isin(chosen), "role"] = COHORT
    _check_sides(out, by, sorted(chosen), place)
    return out


def _check_known(group: pd.Series, by: str, place: Locate) -> None:
    lacking = [str(slide) for slide in group.index[group.astype(str) == ""]]
    if lacking:
        raise UserError(
            f"Slides are to be held out by {by}, and that of some is not known",
            where=place(["splits", "hold_out"]),
            found=", ".join(lacking),
            expected=f"the {by} of every training slide",
            fix=f"fill the column {by} of the sheet, or hold out by slide",
        )


def _named(group: pd.Series, learnt: pd.Series, names: list[str], by: str, place: Locate) -> set[str]:
    """Return the groups named, each of which must have a training slide."""
    known = list(dict.fromkeys(group[learnt].astype(str)))
    for name in names:
        if name not in known:
            held = name in set(group.astype(str))
            why = "held out by the sheet already, for its role is cohort" if held else f"no {by} of the sheet"
            raise UserError(
                f"'{name}' cannot be left out: it is {why}.{'' if held else closest(name, known)}",
                where=place(["splits", "leave_out"]),
                found=name,
                expected=f"out of {', '.join(known)}",
                fix="take it out of leave_out" if held else "correct the name, or take it out",
            )
    return set(names)


def _dealt(group: pd.Series, splits: Mapping[str, Any], by: str, place: Locate) -> set[str]:
    """Return the groups of the fold that is asked for."""
    folds, fold = splits["folds"], splits["fold"]
    dealt = deal_groups(group, folds, splits["seed"])
    if folds > len(dealt):
        raise UserError(
            f"There are more folds than {by}s to hold out",
            where=place(["splits", "folds"]),
            found=f"{folds} folds; training slides of {len(dealt)} {by}s: {', '.join(dealt)}",
            expected=f"2 to {len(dealt)} folds",
            fix=f"set folds to {len(dealt)}, which leaves out one {by} at a time" if len(dealt) > 1 else None,
        )
    return {name for name, its in dealt.items() if its == fold}


def deal_groups(group: pd.Series, folds: int, seed: int) -> dict[str, int]:
    """Return the fold, from 1, of each group: the largest first, each to the fold with the fewest slides so far."""
    import numpy as np

    sizes = group.astype(str).value_counts()
    names = sorted(sizes.index)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    held = [0] * folds
    dealt = {}
    for name in sorted(order, key=lambda name: -sizes[name]):
        least = held.index(min(held))
        held[least] += int(sizes[name])
        dealt[name] = least + 1
    return dict(sorted(dealt.items()))


def _check_sides(slides: pd.DataFrame, by: str, chosen: list[str], place: Locate) -> None:
    told = f"{by}{'s' * (len(chosen) > 1)} {', '.join(chosen)}"
    if not (slides["role"] == TRAINING).any():
        raise UserError(
            "Nothing is left to train on: every training slide is held out",
            where=place(["splits", "hold_out"]),
            found=told,
            expected="at least one training slide outside of it",
            fix=f"leave out fewer {by}s, or add slides to the sheet",
        )
    for patient, part in slides.groupby("patient", sort=False):
        if patient and part["role"].nunique() > 1:
            sides = {role: ", ".join(part.index[part["role"] == role]) for role in (TRAINING, COHORT)}
            raise UserError(
                f"The patient '{patient}' would stand on both sides",
                where=place(["splits", "hold_out"]),
                found=f"held out by {told}: {sides[COHORT]} out, {sides[TRAINING]} in training",
                expected="all slides of a patient on one side: what a model learnt is no test of it",
                fix="hold out by patient, or leave out all slides of the patient",
            )
