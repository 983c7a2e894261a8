"""What a panel can and cannot tell apart in an organ, before anything runs.

A cell type is judged by its positive markers on the panel and by those of them that its nearest rival lacks:

==========================  =========================================================================
cannot be found             fewer than :data:`~nuclass.labels.markers.MIN_POSITIVE` positive markers
cannot be told from RIVAL   the rival lacks fewer than :data:`~nuclass.labels.markers.MIN_OWN` of them
weak                        fewer than :data:`GOOD_POSITIVE`, or the rival lacks fewer than :data:`GOOD_OWN`
can be told                 otherwise
==========================  =========================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from nuclass.core.errors import UserError, closest
from nuclass.core.names import ORGANS
from nuclass.labels.markers import MIN_OWN, MIN_POSITIVE, NEGATIVE, POSITIVE, MarkerSet, marker_sets, rows_of
from nuclass.labels.ontology import CLASSES, Ontology

GOOD_POSITIVE = 5
"""With so many positive markers on the panel a type survives that some of them fail."""
GOOD_OWN = 3
"""With so many markers that the nearest rival lacks, no single gene decides between the two."""

CAN, WEAK, CANNOT_TELL, CANNOT_FIND = "can be told", "weak", "cannot be told from", "cannot be found"
VERDICTS = (CAN, WEAK, CANNOT_TELL, CANNOT_FIND)

COLUMNS = (
    "cell_type",
    "class",
    "lineage",
    "positive",
    "genes",
    "own_genes",
    "rival",
    "for",
    "against",
    "telling",
    "verdict",
    "why",
)


def panel_coverage(table: pd.DataFrame, ontology: Ontology, organ: str, genes: Sequence[str]) -> pd.DataFrame:
    """Judge every cell type that occurs in an organ by the genes of a panel.

    Parameters
    ----------
    table
        Marker table, from :func:`nuclass.labels.markers.load_markers`.
    ontology
        From :func:`nuclass.labels.ontology.load_ontology`.
    organ
        An organ of the study.
    genes
        Names of the panel's genes.

    Returns
    -------
    One row a cell type, best verdict first: ``cell_type``, ``class`` ("" = none), ``lineage``; ``positive``, the
    number of its positive markers on the panel, and ``genes``, their names; ``own_genes``, those that are markers of
    no other type that can be found; ``rival``, the type that is hardest to tell from it; ``for``, the genes that
    speak for the type and not for the rival; ``against``, its negative markers that the rival has; ``telling``, the
    number of both; ``verdict`` and ``why``.

    Raises
    ------
    UserError
        Where the organ is none of the study's.
    """
    if organ not in ORGANS:
        raise UserError(
            "The organ is not one of the study's",
            found=organ,
            expected="one of " + ", ".join(ORGANS),
            fix=f"correct the name.{closest(organ, list(ORGANS))}",
        )
    sets = _held(rows_of(table, organ), set(genes))
    lineage = {name: ontology.cell_types[name].lineage for name in sets}
    candidates, absent = marker_sets(table, organ, genes)
    found = {name: one for name, one in sets.items() if len(one.positive) >= MIN_POSITIVE}
    kept = {one.name for one in candidates}
    holders = Counter(gene for name in kept for gene in found[name].positive)
    rows = []
    for name, one in sets.items():
        rival = _rival(one, found, lineage, absent.get(name, ""))
        telling = _telling(one, found.get(rival))
        verdict, why = _verdict(one, rival, telling[0], name in kept)
        own = [gene for gene in one.positive if holders[gene] == (1 if name in kept else 0)]
        kind = ontology.cell_types[name]
        shown = tuple(", ".join(part) for part in (one.positive, own))
        sides = tuple(", ".join(part) for part in telling)
        count = len(telling[0]) + len(telling[1])
        rows.append(
            (name, kind.class_name, kind.lineage, len(one.positive), *shown, rival, *sides, count, verdict, why)
        )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    rank = frame["verdict"].map(lambda verdict: next(i for i, v in enumerate(VERDICTS) if verdict.startswith(v)))
    order = frame.assign(rank=rank, none=frame["class"] == "").sort_values(["rank", "none", "cell_type"]).index
    return frame.loc[order].reset_index(drop=True)


def class_coverage(coverage: pd.DataFrame) -> pd.DataFrame:
    """Sum up a coverage by the study's classes: the best verdict of each class's cell types.

    Returns
    -------
    Columns ``class``, ``verdict``, ``cell_types``; only classes that occur in the organ.
    """
    rows = []
    for name in CLASSES:
        own = coverage[coverage["class"] == name]
        if len(own):
            rows.append((name, own["verdict"].iloc[0], ", ".join(own["cell_type"])))
    return pd.DataFrame(rows, columns=["class", "verdict", "cell_types"])


def _held(rows: pd.DataFrame, panel: set[str]) -> dict[str, MarkerSet]:
    sets = {}
    for name in sorted(rows.loc[rows["sign"] == POSITIVE, "cell_type"].unique()):
        held = rows[(rows["cell_type"] == name) & rows["gene"].isin(panel)]
        positive, negative = (tuple(held.loc[held["sign"] == sign, "gene"]) for sign in (POSITIVE, NEGATIVE))
        sets[name] = MarkerSet(name, positive, negative)
    return sets


def _rival(one: MarkerSet, found: dict[str, MarkerSet], lineage: dict[str, str], reason: str) -> str:
    """Return the type that lacks fewest of a type's markers; of equals one of its lineage."""
    if one.name not in found:
        return ""

    def distance(rival: str) -> tuple[bool, int, bool, int, str]:
        tell = _telling(one, found[rival])
        named = f"cannot tell it from {rival}," in reason
        kin = lineage[rival] == lineage[one.name]
        return not named, len(tell[0]), not kin, len(tell[1]), rival

    return min((name for name in found if name != one.name), key=distance, default="")


def _telling(one: MarkerSet, rival: MarkerSet | None) -> tuple[list[str], list[str]]:
    """Return the genes that speak for a type and not for its rival, and the type's negatives that the rival has."""
    if rival is None:
        return [], []
    return (
        [gene for gene in one.positive if gene not in rival.positive],
        [gene for gene in one.negative if gene in rival.positive],
    )


def _verdict(one: MarkerSet, rival: str, speaking: list[str], kept: bool) -> tuple[str, str]:
    held = len(one.positive)
    if held < MIN_POSITIVE:
        return CANNOT_FIND, f"the panel holds {held} of its markers; {MIN_POSITIVE} are needed"
    if not kept:
        return f"{CANNOT_TELL} {rival}", f"{rival} lacks {len(speaking)} of its markers; {MIN_OWN} are needed"
    reasons = []
    if held < GOOD_POSITIVE:
        reasons.append(f"only {held} markers")
    if rival and len(speaking) < GOOD_OWN:
        reasons.append(f"only {', '.join(speaking) or 'no gene'} against {rival}")
    return (WEAK, "; ".join(reasons)) if reasons else (CAN, "")
