"""One's own slide for tests of ``nuclass predict``: a held-out slide of the toy study as an image and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tifffile

from nuclass.apply.engine import Options
from nuclass.apply.run import predict_own
from toy_study import paint, toy

BATCH = Options("cpu", 64)
CELLS = 220


def own_files(
    folder: Path,
    image: str = "lung_h.tif",
    columns: tuple[str, str] = ("x_he", "y_he"),
    slide: tuple[str, int] = ("lung_h", 3),
) -> tuple[Path, Path]:
    """Write the image of a toy slide (its name and seed), which says nothing of its scale, and a table of its cells."""
    pixels, cells = paint(*slide)
    tifffile.imwrite(folder / image, pixels, tile=(128, 128), photometric="rgb")
    table = cells.rename(columns=dict(zip(("x_px", "y_px"), columns, strict=True)))
    table[["cell_id", *columns]].to_csv(folder / "cells.csv", index=False)
    return folder / image, folder / "cells.csv"


def predict(files: tuple[Path, Path | None], checkpoint: Path, out: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"organ": "lung", "mpp": 0.25, "formats": (), "options": BATCH}
    return predict_own(*files, checkpoint, out, **(settings | changes))


def table_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "predictions.parquet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """The checkpoints of the toy study by model."""
    return toy(tmp_path_factory)[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    return own_files(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def done(files, trained, tmp_path_factory) -> Path:
    """A finished run of the gate; tests do not change it."""
    out = tmp_path_factory.mktemp("done") / "out"
    predict(files, trained["gate"], out)
    return out
