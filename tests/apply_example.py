"""A small finished run of ``nuclass predict``: its folder with table, outlines, record and slide store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile

from nuclass.core.files import write_json, write_parquet
from nuclass.slides.geometry import Frames
from nuclass.slides.writer import write_store

REPOSITORY = Path(__file__).parent.parent
SHEET = REPOSITORY / "resources/classes.tsv"
CLASSES = ("T_Cell", "B_Cell", "Fibroblast", "Hepatocyte")
"""Of the model; the sheet has no colour for the last one."""
HEIGHT, WIDTH = 331, 403
MPP_HE, MPP = 0.4, 0.25
ABSTAIN_BELOW = 0.4
RADIUS = 4.0
"""Of a nucleus, H&E px."""
_SPACING = 24
# Of the outlines: none, crossing itself, closed with a corner twice, and without an area.
NO_OUTLINE, CROSSED, CLOSED, FLAT = 1, 2, 3, 4


def places(n: int) -> np.ndarray:
    """Return centres of nuclei that do not touch, H&E px, ``(n, 2)``."""
    columns = WIDTH // _SPACING - 1
    at = np.stack([np.arange(n) % columns, np.arange(n) // columns], axis=1) * _SPACING + _SPACING
    return at + np.random.default_rng(1).uniform(-4, 4, (n, 2))


def picture(xy: np.ndarray) -> np.ndarray:
    """Return a pink slide with a dark disc at each place ``(H, W, 3)``."""
    image = np.full((HEIGHT, WIDTH, 3), (235, 190, 215), np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for cx, cy in xy:
        image[(x - cx) ** 2 + (y - cy) ** 2 < RADIUS**2] = (70, 40, 110)
    return image


def table_of(n: int, model: str = "gate", left_out: int = 3, classes: tuple[str, ...] = CLASSES) -> pd.DataFrame:
    """Return predictions of ``n`` cells, of which the last ones lie beside the slide."""
    rng = np.random.default_rng(3)
    xy = places(n)
    out = np.arange(n) >= n - left_out
    xy[out, 0] += WIDTH
    probabilities = rng.dirichlet(np.full(len(classes), 0.6), n)
    probabilities[out] = np.nan
    confidence = probabilities.max(axis=1)
    best = np.where(out, "", np.array(classes, dtype=object)[np.nan_to_num(probabilities).argmax(axis=1)])
    status = np.where(out, "left_out", np.where(confidence < ABSTAIN_BELOW, "abstained", "typed"))
    table = {
        "cell_id": [f"cell {i + 1}" for i in range(n)],
        **{"x_he": xy[:, 0], "y_he": xy[:, 1], "x_um": xy[:, 0] * MPP_HE, "y_um": xy[:, 1] * MPP_HE},
        **{"x_px": xy[:, 0] * MPP_HE / MPP, "y_px": xy[:, 1] * MPP_HE / MPP},
        "organ": "ovary",
        "status": status,
        "reason": np.where(out, "off_slide", np.where(status == "abstained", "low_confidence", "")),
        "class": np.where(status == "typed", best, ""),
        "prediction": best,
        "confidence": confidence,
    }
    if model == "gate":
        table["gate"] = np.where(out, np.nan, rng.uniform(0, 1, n))
        for branch in ("local", "global"):
            said = np.array(classes, dtype=object)[rng.integers(0, len(classes), n)]
            table[f"{branch}_prediction"] = np.where(out, "", said)
            table[f"{branch}_confidence"] = np.where(out, np.nan, rng.uniform(0.3, 1, n))
    table |= {f"prob_{name}": probabilities[:, i] for i, name in enumerate(classes)}
    return pd.DataFrame(table)


def outlines_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return an octagon around each place, and some outlines that are not as they should be."""
    turn = np.arange(8) * np.pi / 4
    rings = [
        np.stack([x + RADIUS * np.cos(turn), y + RADIUS * np.sin(turn)], axis=1)
        for x, y in table[["x_he", "y_he"]].to_numpy()
    ]
    if len(rings) > FLAT:
        rings[NO_OUTLINE] = rings[NO_OUTLINE][:0]
        rings[CROSSED] = rings[CROSSED][[0, 5, 2, 7]]
        rings[CLOSED] = rings[CLOSED][[0, 1, 1, 2, 3, 4, 5, 6, 7, 0]]
        rings[FLAT] = rings[FLAT][[0, 4, 0]]
    return pd.DataFrame(
        {"cell_id": table["cell_id"], "x_he": [r[:, 0] for r in rings], "y_he": [r[:, 1] for r in rings]}
    )


def record_of(table: pd.DataFrame, model: str = "gate", **changes: Any) -> dict[str, Any]:
    """Return ``run.json`` of a table."""
    states = table["status"].value_counts()
    classes = [name.removeprefix("prob_") for name in table if name.startswith("prob_")]
    counts = {"total": len(table), **{state: int(states.get(state, 0)) for state in ("typed", "abstained", "left_out")}}
    typed = table.loc[table["status"] == "typed", "class"].value_counts()
    return {
        "slide": "ovary_1",
        "image": "ovary_1.ome.tif",
        "positions": f"{len(table)} nuclei of a GeoJSON, H&E px",
        "organ": "ovary",
        **{"mpp_he": MPP_HE, "mpp_source": "given", "mpp": MPP, "he_shape": [HEIGHT, WIDTH]},
        "windows": {"local": 224, "global": 1024},
        "model": model,
        "checkpoints": {model: "0123456789abcdef" * 4},
        "classes": classes,
        "abstain_below": ABSTAIN_BELOW,
        "counts": counts,
        "composition": {str(name): int(n) for name, n in typed.items()},
        "hints": [
            {"kind": "organ", "level": "info", "text": "The organ is one of the model's."},
            {
                "kind": "stain",
                "level": "warn",
                "text": "The stain is <unlike> the training slides.",
                "fix": "Look at some cells.",
            },
        ],
        "versions": {"nuclass": "0.1.0", "torch": "2.9"},
        "seconds": 12.5,
        **changes,
    }


def write_slide(folder: Path, xy: np.ndarray) -> Path:
    """Write the slide store; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "he.tif", picture(xy), photometric="rgb", tile=(128, 128))
    frames = Frames(np.diag([MPP_HE / 0.2125, MPP_HE / 0.2125, 1.0]), 0.2125, MPP)
    write_store(folder / "he.tif", frames, folder / "he.ome.zarr", tile=64, shard=256, levels=4)
    (folder / "he.tif").unlink()
    return folder / "he.ome.zarr"


def write_tables(
    folder: Path, table: pd.DataFrame, model: str = "gate", *, outlines: bool = True, **changes: Any
) -> pd.DataFrame:
    """Write table, outlines and record of a run into a folder; return the table."""
    write_parquet(folder / "predictions.parquet", table)
    if outlines:
        write_parquet(folder / "outlines.parquet", outlines_of(table))
    write_json(folder / "run.json", record_of(table, model, **changes))
    return table


def write_run(folder: Path, n: int = 60, model: str = "gate", *, outlines: bool = True, **changes: Any) -> pd.DataFrame:
    """Write a whole run with its slide store; return the table."""
    table = write_tables(folder, table_of(n, model), model, outlines=outlines, **changes)
    write_slide(folder, table.loc[table["status"] != "left_out", ["x_he", "y_he"]].to_numpy())
    return table
