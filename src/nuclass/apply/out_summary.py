"""The summary: one page that holds all it shows, for a screen and for A4 paper."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.apply.out_read import LEFT_OUT, UNCERTAIN, Run
from nuclass.apply.out_summary_maps import DPI, MOST_DRAWN, class_map, confidence_bars, confidence_map, view_of
from nuclass.core.files import atomic_path
from nuclass.core.names import ABSTAINED, title

if TYPE_CHECKING:
    import pandas as pd

NOT_FOR_DIAGNOSIS = "These are research results. They are not for diagnosis."
_COLUMNS = ("x_um", "y_um", "class", "confidence", "status", "reason")
_REASONS = {"off_slide": "off the slide", "low_confidence": "confidence too low"}
_CSS = """
@page { size: A4; margin: 11mm; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 8mm; max-width: 204mm; color: #1c2330; background: #fff;
  font: 9pt/1.35 Arial, Helvetica, "Liberation Sans", "DejaVu Sans", sans-serif;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
h1 { margin: 0; font-size: 15pt; overflow-wrap: anywhere; }
h1.long { font-size: 10pt; }
h2 { margin: 4mm 0 1mm; font-size: 9.5pt; }
p { margin: 1mm 0; }
.soft, .facts dt { color: #5b6575; }
.numbers { display: grid; grid-template-columns: repeat(4, 1fr); gap: 3mm; margin: 3mm 0; }
.numbers div { padding: 1.5mm 2.5mm; border: 1px solid #d9dee6; border-radius: 1.5mm; }
.numbers b { display: block; font-size: 13pt; font-variant-numeric: tabular-nums; }
.hint { margin: 1.2mm 0; padding: 1.2mm 2.5mm; border-left: 1mm solid #0072b2; background: #eef4f9; }
.hint.warn { border-color: #d55e00; background: #fdf0e6; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 4mm; align-items: start; }
.two > * { min-width: 0; }
figure { margin: 0; break-inside: avoid; }
img { display: block; max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 400; color: #5b6575; font-size: 8pt; }
td, th { padding: 0.35mm 1mm; }
td.n, th.n { text-align: right; white-space: nowrap; }
.bar { width: 22%; }
.bar span, .swatch { display: inline-block; height: 2.6mm; vertical-align: middle; }
.swatch { width: 2.6mm; margin-right: 1.2mm; }
.facts { display: grid; grid-template-columns: auto 1fr; gap: 0.4mm 3mm; margin: 1mm 0; font-size: 8pt; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 3mm; padding-top: 1.5mm; border-top: 1px solid #d9dee6; font-weight: 700; }
@media print { body { padding: 0; max-width: none; } }
"""


def write_summary(run: Run, store: str | Path, path: str | Path) -> None:
    """Write ``summary.html``: what came out, where it lies, how sure the model is, and what to look at first."""
    cells = run.table([name for name in _COLUMNS if name in run.columns])
    shown = cells[(cells["status"] != LEFT_OUT).to_numpy()].reset_index(drop=True)
    view = view_of(shown, store)
    maps = {
        "Classes": class_map(view, run.colours(), run.style),
        "Confidence": confidence_map(view, run.style),
    }
    bars = confidence_bars(shown, run.facts.get("abstain_below"), run.style)
    text = _page(run, cells, shown, maps, bars)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _page(run: Run, cells: pd.DataFrame, shown: pd.DataFrame, maps: Mapping[str, bytes], bars: bytes) -> str:
    name = escape(run.slide)
    long = ' class="long"' if len(run.slide) > 60 else ""
    drawn = ""
    if len(shown) > MOST_DRAWN:
        drawn = f'<p class="soft">The maps show {MOST_DRAWN:,} of {len(shown):,} cells, chosen at random.</p>'
    figures = "".join(f"<figure><h2>{key}</h2>{_picture(png, f'Map: {key}')}</figure>" for key, png in maps.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: cell types</title>
<style>{_CSS}</style>
</head>
<body>
<h1{long}>{name}</h1>
<p class="soft">{escape(_subtitle(run))}</p>
{_hints(run.facts.get("hints") or [])}
{_numbers(run, cells)}
<div class="two">{figures}</div>
{drawn}
<div class="two">
<section><h2>Composition of the typed cells</h2>{_composition(run, shown)}</section>
<section><h2>Confidence of the cells</h2>{_picture(bars, "Histogram of the confidence")}
<h2>The run</h2>{_facts(run)}</section>
</div>
<footer>{NOT_FOR_DIAGNOSIS}</footer>
</body>
</html>
"""


def _subtitle(run: Run) -> str:
    organ = run.facts.get("organ") or "not known"
    return f"Cell types from H&E · organ: {organ} · model: {title(str(run.facts['model']))}"


def _hints(hints: Iterable[Mapping[str, Any]]) -> str:
    """Return the hints, warnings first: what was found, and what to do."""
    parts = []
    for hint in sorted(hints, key=lambda one: one.get("level") != "warn"):
        warns = hint.get("level") == "warn"
        head = "Warning" if warns else "Note"
        look = "hint warn" if warns else "hint"
        told = " ".join(str(hint[part]) for part in ("text", "fix") if hint.get(part))
        parts.append(f'<p class="{look}"><b>{head}:</b> {escape(told)}</p>')
    return "\n".join(parts)


def _numbers(run: Run, cells: pd.DataFrame) -> str:
    counts = run.facts["counts"]
    total = int(counts["total"])
    parts = [f"<div><b>{total:,}</b>cells</div>"]
    for state, word in (("typed", "typed"), (ABSTAINED, "abstained"), (LEFT_OUT, "left out")):
        n = int(counts[state])
        why = _reasons(cells, state) if n and state != "typed" else ""
        share = f" · {100 * n / total:.1f} %" if total else ""
        parts.append(f"<div><b>{n:,}</b>{word}{share}{why}</div>")
    return f'<div class="numbers">{"".join(parts)}</div>'


def _reasons(cells: pd.DataFrame, state: str) -> str:
    if "reason" not in cells:
        return ""
    found = cells.loc[cells["status"] == state, "reason"].value_counts()
    told = [
        f"{_REASONS.get(str(reason), str(reason).replace('_', ' '))} {n:,}" for reason, n in found.items() if reason
    ]
    return f'<br><span class="soft">{escape("; ".join(told))}</span>' if told else ""


def _composition(run: Run, shown: pd.DataFrame) -> str:
    """Return a row a class: colour, name, bar, cells, share of the typed ones, mean confidence."""
    counts = {str(name): int(n) for name, n in run.facts["composition"].items() if int(n)}
    typed = sum(counts.values())
    if not typed:
        return "<p>No cell was typed.</p>"
    means = shown.groupby("class")["confidence"].mean()
    colours, most = run.colours(), max(counts.values())
    rows = []
    for name in sorted(counts, key=lambda one: -counts[one]):
        n, colour = counts[name], colours.get(name, "#8C8C8C")
        rows.append(
            f'<tr><td><span class="swatch" style="background:{colour}"></span>{escape(run.sheet.full(name))}</td>'
            f'<td class="bar"><span style="width:{100 * n / most:.1f}%;background:{colour}"></span></td>'
            f'<td class="n">{n:,}</td><td class="n">{100 * n / typed:.1f} %</td>'
            f'<td class="n">{means.get(name, float("nan")):.2f}</td></tr>'
        )
    head = (
        '<tr><th>Class</th><th></th><th class="n">Cells</th><th class="n">Share</th><th class="n">Confidence</th></tr>'
    )
    absent = [run.sheet.full(name) for name in run.sheet.ordered(set(run.classes) - set(counts))]
    none = f'<p class="soft">No cell: {escape(", ".join(absent))}.</p>' if absent else ""
    grey = f'<p class="soft">{UNCERTAIN} cells, on which the model abstains, are grey on the map.</p>'
    return f"<table>{head}{''.join(rows)}</table>{none}{grey}"


def _facts(run: Run) -> str:
    facts = run.facts
    scale = f"{facts['mpp_he']:.4g} µm per px" if facts.get("mpp_he") else ""
    if scale and facts.get("mpp_source"):
        scale += f" ({facts['mpp_source']})"
    hashes = ", ".join(f"{name} {str(value)[:12]}" for name, value in (facts.get("checkpoints") or {}).items())
    versions = ", ".join(f"{name} {value}" for name, value in (facts.get("versions") or {}).items())
    rows = {
        "Image": facts.get("image"),
        "Positions": facts.get("positions"),
        "Scale": scale,
        "Checkpoints": hashes,
        "Versions": versions,
    }
    told = "".join(f"<dt>{key}</dt><dd>{escape(str(value))}</dd>" for key, value in rows.items() if value)
    return f'<dl class="facts">{told}</dl>'


def _picture(png: bytes, about: str) -> str:
    # The header of a PNG tells its width; a page in mm needs it in mm.
    width = int.from_bytes(png[16:20], "big") / DPI * 25.4
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{escape(about)}" style="width:{width:.1f}mm" src="data:image/png;base64,{data}">'
