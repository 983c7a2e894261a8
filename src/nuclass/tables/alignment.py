"""The verdicts on all slides: a table, and one page with the pictures that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.files import atomic_path, read_json
from nuclass.tables.layout import SYNTHETIC_NOTE, Cell, Table, grid, share

_KEYS = (
    *("slide", "verdict", "residual_um", "residual_sem_um", "region_p90_um", "score", "off_image", "off_tissue"),
    *("mpp_he", "embedded_mpp", "rotation_deg", "mirrored", "align", "given_as", "n_nuclei", "n_measured"),
)
_ORDER = {"fail": 0, "warn": 1, "pass": 2}
_COLUMNS = (
    *("slide", "verdict", "residual, µm", "9 of 10 squares, µm", "score", "off image", "off tissue"),
    *("H&E, µm/px", "file says", "turned", "aligned", "remarks"),
)
_NOTES = (
    "Residual: distance of the nuclei in the picture from where the cells say, with 95 % interval from the scatter "
    "of the squares of tissue. Score: how far the nuclei stand out at the best place, in standard deviations of all "
    "other places; a wrong section reaches about 5. µm/px follows from the alignment; what the file says is not used.",
)


def alignment_rows(verdicts: Sequence[str | Path]) -> pd.DataFrame:
    """Return one row a slide: the numbers of ``alignment.json``, and ``remarks`` (reasons, then notes)."""
    rows = []
    for file in verdicts:
        record = read_json(file)
        rows.append(
            {**{key: record.get(key) for key in _KEYS}, "remarks": "; ".join([*record["reasons"], *record["notes"]])}
        )
    return pd.DataFrame(rows, columns=[*_KEYS, "remarks"])


def alignment_table(verdicts: Sequence[str | Path]) -> Table:
    """Lay out the verdicts; ``verdicts`` are the slides' ``alignment.json``."""
    data = alignment_rows(verdicts)
    rows = [_shown(row) for row in data.to_dict("records")]
    wide = {"aligned": 0.17, "remarks": 0.25}
    return Table("Alignment of every slide", data, [grid(rows, left=2, wide=wide)], _NOTES)


def alignment_page(
    verdicts: Sequence[str | Path], pictures: Sequence[str | Path], page: str | Path, *, study: str, synthetic: bool
) -> None:
    """Write one HTML page, the slides that need a look first, each with its picture; it holds all it shows."""
    data = alignment_rows(verdicts)
    order = sorted(range(len(data)), key=lambda i: (_ORDER.get(data["verdict"][i], 3), i))
    head = "".join(f"<th>{escape(name)}</th>" for name in _COLUMNS)
    lines, shown = [], []
    for i in order:
        row = data.iloc[i].to_dict()
        cells = _shown(row)
        name, verdict = escape(str(row["slide"])), escape(str(row["verdict"]))
        first = f'<td><a href="#{name}">{name}</a></td><td class="{verdict}">{verdict}</td>'
        lines.append(f"<tr>{first}{''.join(f'<td>{escape(cells[c].text)}</td>' for c in _COLUMNS[2:])}</tr>")
        shown.append(f'<h2 id="{name}">{name}</h2><img alt="{name}: {verdict}" src="{_embedded(pictures[i])}">')
    counts = data["verdict"].value_counts()
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _ORDER if verdict in counts)
    notes = "".join(f"<p>{escape(text)}</p>" for text in (*_NOTES, *((SYNTHETIC_NOTE,) if synthetic else ())))
    html = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Alignment: {escape(study)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Alignment of study {escape(study)}</h1><p>{summary}.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>{notes}{''.join(shown)}"
        "</body></html>\n"
    )
    with atomic_path(page) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _embedded(picture: str | Path) -> str:
    """Return a picture as part of a page, as JPEG: a seventh of the PNG, which stays beside the verdict."""
    from PIL import Image

    stream = BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").save(stream, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _shown(row: dict[str, Any]) -> dict[str, Cell]:
    """Return one slide's cells by the names of the columns."""
    sem = row["residual_sem_um"]
    values = [
        Cell(str(row["slide"])),
        Cell(str(row["verdict"])),
        Cell(row["residual_um"], spread=None if sem is None else 1.96 * sem, digits=2),
        Cell(row["region_p90_um"], digits=2),
        Cell(row["score"], digits=0),
        share(row["off_image"]),
        share(row["off_tissue"]),
        Cell(row["mpp_he"], digits=4),
        Cell(row["embedded_mpp"], digits=4),
        Cell(f"{row['rotation_deg']:.1f}°{', mirrored' if row['mirrored'] else ''}"),
        Cell(f"{row['align']} ({row['given_as']})"),
        Cell(str(row["remarks"]).replace(" um", " µm")),
    ]
    return dict(zip(_COLUMNS, values, strict=True))


_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; color: #222; max-width: 1400px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 12.5px; }
th, td { border-bottom: 1px solid #ddd; padding: .35em .6em; text-align: left; vertical-align: top; }
td:nth-child(n+3):nth-child(-n+9) { text-align: right; white-space: nowrap; }
td.pass { color: #1b7f4b; } td.warn { color: #b36b00; font-weight: 600; } td.fail { color: #b3261e; font-weight: 700; }
img { max-width: 100%; border: 1px solid #ddd; }
h2 { margin-top: 2em; border-top: 1px solid #ccc; padding-top: .6em; }
"""
