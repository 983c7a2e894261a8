"""How far given labels and those of the markers agree: counts of pairs, scores of each name, kappa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.log import get_logger
from nuclass.core.names import ABSTAINED, LABELLED
from nuclass.labels.given import check_same_cells
from nuclass.labels.ontology import Ontology

LEVELS = ("cell_type", "class", "lineage")
NO_CLASS = "no_class"
CHANCE_KAPPA = 0.2
"""Kappa of the lineages below which given labels may be of another slide."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class Agreement:
    """How far two tables of labels of one slide agree.

    Attributes
    ----------
    pairs
        One row a pair of names: ``level given markers cells``. Levels are ``cell_type``, ``class`` and ``lineage``;
        ``markers`` is ``abstained`` where the markers give no label.
    scores
        One row a name: ``level name given_cells marker_cells both precision recall f1``, counted on the cells that
        both label; the given labels are taken as right. A score without cells is NaN.
    summary
        Counts of cells (``cells``: given a type and not dropped; ``both``: labelled by the markers too;
        ``share_labelled_by_markers``) and, by level, ``cells accuracy balanced_accuracy macro_f1 kappa`` (None
        where there are no cells).
    """

    pairs: pd.DataFrame
    scores: pd.DataFrame
    summary: dict[str, Any]


def agreement(given: pd.DataFrame, markers: pd.DataFrame, ontology: Ontology, name: str = "") -> Agreement:
    """Compare given labels with those of the markers, cell by cell.

    A type without a class counts as ``no_class``; cells where both types have none say nothing of the classes and
    are left out there.

    Parameters
    ----------
    given, markers
        Tables of labels of the same cells in the same order.
    ontology
        Cell types and their lineages.
    name
        The slide, for messages.
    """
    check_same_cells(given, markers)
    known = (given["status"] == LABELLED).to_numpy()
    left, right = given[known].reset_index(drop=True), markers[known].reset_index(drop=True)
    kept = (right["status"] == LABELLED).to_numpy()
    pairs, scores, levels = [], [], {}
    for level in LEVELS:
        a, b = _names(left, level, ontology), _names(right, level, ontology).where(kept, ABSTAINED)
        if level == "class":
            told = ~((a == NO_CLASS) & b.isin([NO_CLASS, ABSTAINED]))
            a, b = a[told], b[told]
        counted = pd.DataFrame({"given": a, "markers": b}).value_counts(sort=False).rename("cells").reset_index()
        pairs.append(counted.sort_values(["given", "markers"]).assign(level=level))
        both = (b != ABSTAINED).to_numpy()
        scores.append(_scores(a[both], b[both]).assign(level=level))
        levels[level] = _overall(a[both], b[both], scores[-1])
    summary = {
        "cells": len(left),
        "both": int(kept.sum()),
        "share_labelled_by_markers": float(kept.mean()) if len(kept) else None,
        "levels": levels,
    }
    kappa = levels["lineage"]["kappa"]
    if kappa is not None and kappa < CHANCE_KAPPA:
        _log.warning(
            "%s: given labels and markers agree hardly better than by chance (kappa of the lineages %.2f on %d "
            "cells); are the labels of this slide?",
            name or "slide",
            kappa,
            levels["lineage"]["cells"],
        )
    return Agreement(
        pd.concat(pairs, ignore_index=True)[["level", "given", "markers", "cells"]],
        pd.concat(scores, ignore_index=True)[
            ["level", "name", "given_cells", "marker_cells", "both", "precision", "recall", "f1"]
        ],
        summary,
    )


def _names(labels: pd.DataFrame, level: str, ontology: Ontology) -> pd.Series[Any]:
    if level == "lineage":
        return labels["cell_type"].map({name: kind.lineage for name, kind in ontology.cell_types.items()}).fillna("")
    return labels[level].replace("", NO_CLASS) if level == "class" else labels[level]


def _scores(given: pd.Series[Any], markers: pd.Series[Any]) -> pd.DataFrame:
    """Return the scores of every name that occurs."""
    names = sorted({*given, *markers})
    first = given.value_counts().reindex(names, fill_value=0).to_numpy()
    second = markers.value_counts().reindex(names, fill_value=0).to_numpy()
    both = given[given == markers].value_counts().reindex(names, fill_value=0).to_numpy()
    return pd.DataFrame(
        {
            "name": names,
            "given_cells": first,
            "marker_cells": second,
            "both": both,
            "precision": _share(both, second),
            "recall": _share(both, first),
            "f1": _share(2 * both, first + second),
        }
    )


def _share(part: Any, whole: Any) -> Any:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=np.asarray(whole) > 0)


def _overall(given: pd.Series[Any], markers: pd.Series[Any], scores: pd.DataFrame) -> dict[str, Any]:
    """Return the scores of one level; means are over the names that are given."""
    n = len(given)
    if n == 0:
        return {"cells": 0, "accuracy": None, "balanced_accuracy": None, "macro_f1": None, "kappa": None}
    accuracy = float((given == markers).mean())
    chance = float((scores["given_cells"] / n * scores["marker_cells"] / n).sum())
    named = scores[scores["given_cells"] > 0]
    return {
        "cells": n,
        "accuracy": accuracy,
        "balanced_accuracy": float(named["recall"].mean()),
        "macro_f1": float(named["f1"].mean()),
        # One name on both sides leaves nothing to agree on beyond chance.
        "kappa": (accuracy - chance) / (1 - chance) if chance < 1 else None,
    }
