"""Measure how good labels are on data with known types, and write the tables of docs/labels.md.

    python benchmarks/measure_labels.py [--only groups kinds ...] [--panels FOLDER] [--print]

Each table stands in docs/labels.md between `<!-- measured: NAME -->` and `<!-- end of measured -->`:

    calibration   how often labels of each confidence are right (simulators of calibrate_labels.py, seeds not fitted to)
    demo          the demo's slides against their truth (needs results/ of a run)
    groups        nine broad groups on the panel simulator
    types         fine types of the same slides
    stroma        what becomes of types that a panel has no markers for (hColon)
    kinds         tumours of one kind each, with and without the rule of malignancy
    normal        normal epithelium called malignant, with and without a tumour in the section
    panel         what `nuclass panel` prints for hBreast (--panels: the folder with the tables of the public panels)
    coverage      what seven public panels can tell (the same folder)
    label         what `nuclass label` prints for a simulated slide

All of it takes three to five minutes on one core.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/labels.md"
SEEDS, N = (10, 11, 12, 13), 5000
BLOCK = r"(<!-- measured: {} -->\n)(.*?)(<!-- end of measured -->)"
PANELS = {
    ("hBreast", "breast"): "hBreast.csv",
    ("hLung", "lung"): "hLung.csv",
    ("hColon", "colon"): "hColon.csv",
    ("hMulti", "pancreas"): "hMulti.csv",
    ("hMulti ", "ovary"): "hMulti.csv",
    ("hImmuno-Oncology", "lung"): "hIO.csv",
    ("Prime 5K", "ovary"): "hPrime5K.csv",
}
MISSING = ("fibroblast", "endothelial", "pericyte", "smooth_muscle", "glia")


@cache
def tables() -> tuple[pd.DataFrame, Any]:
    from nuclass.labels.markers import load_markers
    from nuclass.labels.ontology import load_ontology

    ontology = load_ontology(ROOT / "resources/label_ontology.yaml")
    return load_markers(ROOT / "resources/markers/markers.tsv"), ontology


@cache
def labelled(
    panel: str, kind: str, seed: int, shares: tuple[tuple[str, float], ...] = (), rule: bool = True
) -> pd.DataFrame:
    """Return a simulated slide's cells that passed quality control: truth, coarse group, and the labels."""
    from calibrate_labels import type_of
    from nuclass.labels import assign
    from panel_simulator import simulate_panel

    markers, ontology = tables()
    slide = simulate_panel(panel, N, seed, kind, shares=dict(shares) or None)
    cells = slide.cells.dropna(axis="columns", how="all")
    bonus = assign.malignant_bonus
    if not rule:
        assign.malignant_bonus = lambda counts, *_: np.zeros(counts.shape[0], np.float32)
    try:
        labels = assign.label_cells(slide.counts, cells, markers, panel, ontology, assign.Settings()).labels
    finally:
        assign.malignant_bonus = bonus
    sys.stderr.write(f"{panel} {kind} {seed} {len(shares)} {rule}\n")
    table = labels.assign(fine=slide.truth.to_numpy(), coarse=slide.coarse.to_numpy())
    table["truth"] = table["fine"].map(type_of).replace("Lymphatic_Endothelial", "Endothelial")
    return table[table["status"] != "dropped"].reset_index(drop=True)


def slides(panel: str, kind: str = "xenium", **other: Any) -> list[pd.DataFrame]:
    return [labelled(panel, kind, seed, **other) for seed in SEEDS]


def lines(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def share(values: pd.Series) -> str:
    return f"{values.mean():.2f}" if len(values) else "-"


def calibration() -> str:
    from calibrate_labels import measure, table_of
    from nuclass.labels.assign import Settings
    from nuclass.labels.confidence import confidence

    how, found = Settings(), measure([7002, 7003])
    posterior, lead = found["posterior"].to_numpy(), found["lead"].to_numpy()
    alone = table_of(found, posterior).splitlines()[-1]
    text = table_of(found, confidence(posterior, lead, how.naming_slope, how.naming_offset))
    return text + "\n" + alone.replace("expected calibration error", "the same of the posterior alone")


def demo() -> str:
    from sklearn.metrics import f1_score

    rows = []
    for file in sorted(ROOT.glob("results/labels/*/labels.parquet")):
        slide = file.parent.name
        truth = pd.read_parquet(ROOT / f"resources/truth/{slide}/truth.parquet")[["cell_id", "class"]]
        table = pd.read_parquet(file).merge(truth.rename(columns={"class": "true"}), on="cell_id")
        kept, named = table[table["class"] != ""], table[table["status"] != "dropped"]
        classes = sorted(set(named["true"]))
        scores = f1_score(kept["true"], kept["class"], labels=classes, average=None)
        worst = classes[int(np.argmin(scores))]
        rest = named[named["status"] == "abstained"]
        right = (
            share(part == true) for part, true in ((kept["class"], kept["true"]), (rest["raw_label"], rest["true"]))
        )
        text = [f"{100 * len(kept) / len(named):.1f} %", f"{scores.mean():.3f}", f"{worst} {scores.min():.2f}", *right]
        rows.append([slide, *text])
    head = ["slide", "labelled", "macro-F1", "worst class, its F1", "labels right", "right if abstained ones had one"]
    return lines(head, rows)


def groups() -> str:
    from test_labels_panel import GROUPS, grouped

    rows = []
    for panel, kind, name, what in (
        ("breast", "xenium", "hBreast, 280 genes", "four slides"),
        ("breast", "scrna", "hBreast, 280 genes", "four tables of eight patients"),
        ("lung", "xenium", "hLung, 289 genes", "four slides"),
        ("colon", "xenium", "hColon, 322 genes", "four slides, the seven groups it has markers for"),
    ):
        wanted = [g for g in GROUPS if not (panel == "colon" and g in MISSING)]
        kept, every, shares = [], [], []
        for table in slides(panel, kind):
            table = table[table["coarse"].isin(wanted)]
            hit = pd.Series(grouped(table["raw_label"]) == table["coarse"].to_numpy(), table.index)
            has = table["status"] == "labelled"
            kept.append(hit[has].groupby(table["coarse"]).mean().mean())
            every.append(hit.groupby(table["coarse"]).mean().mean())
            shares.append(has.mean())
        low, high = min(kept), max(kept)
        shown = f"{np.mean(kept):.3f} ({low:.3f} to {high:.3f})"
        rows.append([name, what, shown, f"{100 * np.mean(shares):.0f} %", f"{np.mean(every):.3f}"])
    return lines(["panel", "data", "balanced accuracy, mean (lowest to highest)", "labelled", "all cells"], rows)


def types() -> str:
    makes = [pd.concat(slides(p, k)) for p, k in (("breast", "xenium"), ("breast", "scrna"), ("lung", "xenium"))]
    makes = [table[table["status"] == "labelled"] for table in makes]
    pooled = pd.concat(makes)
    known = set(tables()[0]["cell_type"])
    rows = []
    for name, part in sorted(pooled.groupby("truth"), key=lambda item: (item[1]["class"].mode()[0] == "", item[0])):
        if name not in known or len(part) < 100:
            continue
        wrong = part.loc[part["cell_type"] != name, "cell_type"].value_counts()
        wrong = wrong[wrong >= 0.05 * len(part)].index[:2]
        rows.append([name, *(share((m["cell_type"] == name)[m["truth"] == name]) for m in makes), ", ".join(wrong)])
    return lines(["true type", "hBreast, slides", "hBreast, tables", "hLung, slides", "mostly taken for"], rows)


def stroma() -> str:
    rows = []
    for group in MISSING:
        parts = [table[table["coarse"] == group] for table in slides("colon")]
        every = pd.concat(parts)
        wrong = every.loc[every["status"] == "labelled", "cell_type"].value_counts().index[:2]
        shares = [share(part["status"] == "abstained") for part in parts]
        rows.append([group.replace("_", " "), f"{len(every):,}", ", ".join(shares), ", ".join(wrong)])
    return lines(["true group", "cells", "abstained", "the others are mostly called"], rows)


def kinds() -> str:
    from panel_simulator import load_panel

    types_ = load_panel("breast").types
    tumours = types_[types_["coarse"] == "malignant"]
    rest = types_.loc[types_["coarse"] != "malignant", "share"].to_dict()
    rows = []
    for name, row in tumours.iterrows():
        shares = tuple({**rest, str(name): float(tumours["share"].sum())}.items())
        sides = []
        for rule in (True, False):
            parts = [
                t[(t["status"] == "labelled") & (t["fine"] == name)] for t in slides("breast", shares=shares, rule=rule)
            ]
            sides.append(", ".join(share(part["cell_type"] == "Epithelial_Malignant") for part in parts))
        rows.append([str(name).removeprefix("Malignant_").replace("_", " "), f"{100 * row['cycling']:.0f} %", *sides])
    return lines(["tumour", "cells that divide", "with the rule", "without"], rows)


def normal() -> str:
    from panel_simulator import load_panel

    rows = []
    for panel in ("breast", "lung", "colon"):
        types_ = load_panel(panel).types
        healthy = types_.loc[types_["coarse"] != "malignant", "share"]
        for name in types_.index[types_["coarse"] == "epithelial"]:
            texts = []
            for shares in ((), tuple((healthy / healthy.sum()).items())):
                parts = [t[(t["status"] == "labelled") & (t["fine"] == name)] for t in slides(panel, shares=shares)]
                texts.append(", ".join(share(part["cell_type"] == "Epithelial_Malignant") for part in parts))
            if any(float(value) >= 0.05 for text in texts for value in text.split(", ") if value != "-"):
                divide = f"{100 * types_.loc[name, 'cycling']:.1f} %".replace(".0 %", " %")
                rows.append([panel, str(name).replace("_", " "), divide, *texts])
    return lines(["section", "normal cells", "that divide", "beside a tumour", "healthy section"], rows)


def coverage(folder: Path) -> str:
    from nuclass.labels.coverage import CAN, WEAK, class_coverage, panel_coverage
    from nuclass.labels.panel_files import read_panel

    rows = []
    for (name, organ), file in PANELS.items():
        path = next(folder.rglob(file), None)
        if path is None:
            raise SystemExit(f"{folder} has no {file}")
        found = panel_coverage(*tables(), organ, read_panel(path))
        verdict = found["verdict"].str.replace(r"^cannot be told from .*", "cannot be told", regex=True)
        counts = [str(int((verdict == v).sum())) for v in (CAN, WEAK, "cannot be told", "cannot be found")]
        poor = class_coverage(found)
        poor = poor.loc[~poor["verdict"].isin((CAN, WEAK)), "class"]
        rows.append([f"{name.strip()}, {organ}", *counts, ", ".join(poor) or "none"])
    return lines(
        [
            "panel, organ",
            "can be told",
            "weak",
            "cannot be told",
            "cannot be found",
            "classes that cannot be told or found",
        ],
        rows,
    )


def printed(*arguments: str, folder: Path) -> str:
    """Return what the command prints, as the page shows it."""
    command = [str(Path(sys.executable).parent / "nuclass"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return f"```text\n{done.stdout.rstrip()}\n```"


def panel(folder: Path) -> str:
    file = next(folder.rglob(PANELS["hBreast", "breast"]))
    return printed("panel", file.name, "--organ", "breast", folder=file.parent)


def label() -> str:
    from panel_simulator import simulate_panel

    slide = simulate_panel("breast", 4000, SEEDS[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide.counts.obs = slide.cells.set_index("cell_id").loc[slide.counts.obs_names, ["x_um", "y_um"]]
        slide.counts.write_h5ad(folder / "counts.h5ad")
        return printed(
            "label", "--counts", "counts.h5ad", "--organ", "breast", "--out", "labels.parquet", folder=folder
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    makers: Mapping[str, Callable[..., str]] = {
        f.__name__: f for f in (panel, coverage, label, demo, groups, types, stroma, kinds, normal, calibration)
    }
    parser.add_argument("--only", nargs="+", choices=list(makers), help="these tables alone")
    parser.add_argument(
        "--panels", type=Path, help="folder with the tables of the public panels; without it these two stay"
    )
    parser.add_argument("--print", action="store_true", help="print the tables, and leave the page as it is")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
    for name, make in makers.items():
        if (options.only and name not in options.only) or (name in ("panel", "coverage") and options.panels is None):
            continue
        text = make(options.panels) if name in ("panel", "coverage") else make()
        sys.stdout.write(f"{name}\n\n{text}\n\n")
        sys.stdout.flush()
        page = PAGE.read_text(encoding="utf-8")
        pattern = re.compile(BLOCK.format(name), re.DOTALL)
        if not options.print:
            assert pattern.search(page), f"{PAGE} has no block for {name}"
            PAGE.write_text(pattern.sub(lambda m, t=text: m[1] + t + "\n" + m[3], page), encoding="utf-8")


if __name__ == "__main__":
    main()
