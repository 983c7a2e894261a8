"""What the panel of one slide can tell apart, known as soon as its bundle is here: before any picture is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nuclass.core.errors import UserError, closest
from nuclass.core.files import write_csv
from nuclass.core.log import get_logger
from nuclass.labels.coverage import CAN, WEAK, panel_coverage
from nuclass.labels.markers import check_species, load_markers
from nuclass.labels.ontology import Ontology, load_ontology
from nuclass.labels.panel_files import read_panel

_log = get_logger(__name__)


def check_panel(
    *,
    bundle: str | Path,
    markers: str | Path,
    extra_markers: str | Path | None,
    ontology: str | Path,
    organ: str,
    out: str | Path,
    leave_out: Sequence[str] = (),
    source: str = "markers",
) -> None:
    """Judge every cell type of an organ by the genes of a slide's panel, and write the table.

    Parameters
    ----------
    bundle
        The slide's folder.
    leave_out
        Cell types that no section of the study holds; they are no rivals either.
    source
        Where the slide's labels come from. With ``given`` a panel that markers cannot label is no error.

    Raises
    ------
    UserError
        Where labels are to come from markers, and the panel is one of another species or cannot tell two types.
    """
    known = load_ontology(ontology)
    table = load_markers(markers, extra_markers, known)
    genes = read_panel(bundle)
    coverage = judge_panel(genes, table, known, organ, leave_out)
    try:
        check_species(genes, table, bundle)
        _need_types(coverage, bundle)
    except UserError as error:
        if source != "given":
            raise
        _log.warning("%s", error)
    write_csv(out, coverage)


def judge_panel(
    genes: Sequence[str], markers: pd.DataFrame, ontology: Ontology, organ: str, leave_out: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the coverage (:func:`nuclass.labels.coverage.panel_coverage`) without the types that are left out."""
    known = sorted(set(markers["cell_type"]))
    if unknown := [name for name in leave_out if name not in known]:
        raise UserError(
            "A cell type that is to be left out has no markers",
            where="labels.leave_out",
            found=", ".join(unknown) + "." + closest(unknown[0], known),
            expected="names of the marker table",
        )
    return panel_coverage(markers[~markers["cell_type"].isin(leave_out)], ontology, organ, genes)


def _need_types(coverage: pd.DataFrame, bundle: str | Path) -> None:
    able = coverage.loc[coverage["verdict"].isin((CAN, WEAK)), "cell_type"].tolist()
    if len(able) < 2:
        raise UserError(
            "The panel cannot tell cell types apart",
            where=bundle,
            found=f"it can tell {', '.join(able) or 'none'}",
            expected="three positive markers of at least two cell types",
            fix="add markers of this panel's genes to a table of your own (labels.extra_markers), or give labels",
        )
