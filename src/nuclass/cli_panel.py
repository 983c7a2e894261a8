"""The command ``nuclass panel``: what a panel can and cannot tell apart, before anything runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.cli_common import add_command, add_own_markers, add_settings, own_markers, settings_of, study_file

if TYPE_CHECKING:
    import pandas as pd

_ABOUT = """\
Tell which cell types a panel can find in an organ, which it cannot tell apart, and by which genes.
PANEL is a panel table with a column of genes (.csv or .tsv), gene_panel.json, the folder of a bundle,
a matrix (.h5, .h5ad), or a text with one gene a line. Nothing else is needed, and nothing runs.

examples:
  nuclass panel Xenium_hBreast_v1_metadata.csv --organ breast
  nuclass panel resources/bundles/ovary_1 --organ ovary --genes
  nuclass panel my_genes.txt --organ lung --markers config/markers.tsv --out coverage.csv
"""
_HEADINGS = {
    "cell_type": "cell type",
    "class": "class",
    "positive": "markers",
    "verdict": "verdict",
    "rival": "hardest rival",
    "for": "genes for",
    "against": "against",
}
_NUMBERS = ("positive", "for", "against")
_NO_CLASS = "-"


def add_panel(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``nuclass panel``."""
    from nuclass.core.names import ORGANS

    parser = add_command(commands, "panel", "Tell which cell types a panel can find and tell apart", _ABOUT)
    parser.add_argument("panel", type=Path, help="panel table, gene_panel.json, folder of a bundle, or list of genes")
    parser.add_argument("--organ", choices=ORGANS, required=True, help="organ of the section")
    parser.add_argument("--genes", action="store_true", help="name the genes too")
    add_own_markers(parser)
    parser.add_argument("--out", type=Path, help="write the whole table to this file, .csv or .md")
    add_settings(parser)
    parser.set_defaults(run=_panel)


def _panel(options: argparse.Namespace) -> None:
    from nuclass.core.errors import UserError
    from nuclass.labels.markers import check_species, load_markers
    from nuclass.labels.ontology import load_ontology
    from nuclass.labels.panel_check import judge_panel
    from nuclass.labels.panel_files import read_panel

    if options.out is not None and options.out.suffix not in (".csv", ".md"):
        raise UserError("--out is no table", found=options.out, expected="a file that ends in .csv or .md")
    settings = settings_of(options)
    ontology = load_ontology(study_file(settings["ontology"]))
    markers = load_markers(study_file(settings["markers"]), own_markers(options, settings), ontology)
    genes = read_panel(options.panel)
    check_species(genes, markers, options.panel)
    coverage = judge_panel(genes, markers, ontology, options.organ, settings["labels"]["leave_out"])
    known = len(set(genes) & set(markers["gene"]))
    lines = [f"{options.panel}: {len(genes)} genes, {known} of them markers; {options.organ}", ""]
    sys.stdout.write("\n".join(lines + _table(coverage) + _genes(coverage, options.genes) + _summary(coverage)) + "\n")
    if options.out is not None:
        _write(coverage, options.out)
        sys.stdout.write(f"Wrote {options.out}.\n")


def _table(coverage: pd.DataFrame) -> list[str]:
    cells = [list(_HEADINGS.values())]
    for row in coverage.to_dict("records"):
        values = {**row, "class": row["class"] or _NO_CLASS, "positive": str(row["positive"])}
        if row["rival"]:
            values |= {key: str(_count(row[key])) for key in ("for", "against")}
        cells.append([str(values[key]) for key in _HEADINGS])
    widths = [max(len(row[k]) for row in cells) for k in range(len(_HEADINGS))]
    cells.insert(1, ["-" * width for width in widths])
    right = [key in _NUMBERS for key in _HEADINGS]
    return [
        "  ".join(
            value.rjust(width) if numeric else value.ljust(width)
            for value, width, numeric in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def _count(genes: str) -> int:
    return len(genes.split(", ")) if genes else 0


def _genes(coverage: pd.DataFrame, wanted: bool) -> list[str]:
    if not wanted:
        return []
    lines = ["", "markers on the panel; * marks a gene of no other type that can be found"]
    for row in coverage.to_dict("records"):
        own = set(row["own_genes"].split(", "))
        named = [gene + "*" * (gene in own) for gene in row["genes"].split(", ") if gene]
        lines.append(f"  {row['cell_type']}: {', '.join(named) or 'none'}")
    return lines


def _summary(coverage: pd.DataFrame) -> list[str]:
    from nuclass.labels.coverage import CAN, GOOD_OWN, GOOD_POSITIVE, WEAK, class_coverage
    from nuclass.labels.markers import MIN_OWN, MIN_POSITIVE

    classes = class_coverage(coverage)
    can = (classes["verdict"] == CAN).sum()
    lines = ["", f"Of the {len(classes)} classes of the study that occur here, {can} can be told."]
    first = coverage.drop_duplicates("class")
    lines += [
        f"  {row['class']}: {row['verdict']}{': ' + row['why'] if row['why'] else ''}"
        for row in first[(first["class"] != "") & (first["verdict"] != CAN)].to_dict("records")
    ]
    lines += [
        "",
        "genes for: markers of the type its hardest rival lacks. against: its negative markers the rival has.",
        f"{CAN}: {GOOD_POSITIVE} markers or more, of which the rival lacks {GOOD_OWN} or more. "
        f"{WEAK}: at least {MIN_POSITIVE} and {MIN_OWN}.",
        "Cells of the other types stay unlabelled, or are taken for their nearest kin.",
    ]
    return lines


def _write(coverage: pd.DataFrame, path: Path) -> None:
    from nuclass.core.files import atomic_path, write_csv

    if path.suffix == ".csv":
        write_csv(path, coverage)
        return
    heads = " | ".join(coverage.columns)
    rows = [" | ".join(str(value) or " " for value in row) for row in coverage.itertuples(index=False)]
    rule = " | ".join("---" for _ in coverage.columns)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"| {line} |\n" for line in (heads, rule, *rows)), encoding="utf-8")
