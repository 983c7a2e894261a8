"""Tiles, cells and page of the explorer, as files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from explorer_example import (
    CLASSES,
    HEIGHT,
    MAPPED,
    SHEET,
    SOURCES,
    WIDTH,
    picture,
    predictions,
    write_maps,
    write_picture,
    write_tables,
)
from nuclass.core.errors import UserError
from nuclass.explorer import cells as cells_module
from nuclass.explorer.cells import NONE, write_cells
from nuclass.explorer.chunks import share_bytes, write_chunk
from nuclass.explorer.maps import overlaid
from nuclass.explorer.page import write_page
from nuclass.explorer.tiles import TILE, halved, tiles_of, top_level, write_tiles


def received(path: Path) -> tuple[str, Any]:
    """Return key and value of a file of data."""
    text = path.read_text(encoding="ascii").strip()
    assert text.startswith("NuClass.receive(")
    key, value = json.loads(f"[{text[len('NuClass.receive(') : -2]}]".replace("<\\/", "</"))
    return key, value


def numbers(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=f"<{dtype}")


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_tiles_hold_the_slide_at_every_level(tmp_path: Path, levels: int) -> None:
    write_tiles("s", write_picture(tmp_path, levels), tmp_path / "tiles", quality=95)
    key, facts = received(tmp_path / "tiles/tiles.js")
    top = top_level(HEIGHT, WIDTH)
    assert (key, facts["width"], facts["height"], facts["tile"], facts["top"]) == ("s/tiles", WIDTH, HEIGHT, TILE, top)
    dzi = (tmp_path / "tiles/slide.dzi").read_text()
    assert f'TileSize="{TILE}"' in dzi
    assert f'Width="{WIDTH}" Height="{HEIGHT}"' in dzi
    files = list((tmp_path / "tiles/slide_files").rglob("*.jpeg"))
    assert len(files) == sum(tiles_of(-(-HEIGHT // 2**k), -(-WIDTH // 2**k)) for k in range(top + 1))
    for k in range(top + 1):
        height, width = -(-HEIGHT // 2**k), -(-WIDTH // 2**k)
        found = np.zeros((height, width, 3), np.float64)
        for row, column in np.ndindex(-(-height // TILE), -(-width // TILE)):
            with Image.open(tmp_path / f"tiles/slide_files/{top - k}/{column}_{row}.jpeg") as tile:
                box = found[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                assert box.shape[:2] == (tile.height, tile.width)
                box[:] = np.asarray(tile)
        # Means of blocks, the last row and column repeated.
        whole = np.pad(picture(), ((0, height * 2**k - HEIGHT), (0, width * 2**k - WIDTH), (0, 0)), mode="edge")
        expected = whole.reshape(height, 2**k, width, 2**k, 3).mean((1, 3))
        off = np.abs(found - expected)[: max(height - 1, 1), : max(width - 1, 1)]
        # In coarse levels the waves are a pattern of single pixels, of which JPEG keeps but the mean.
        assert k >= 6 or off.mean() < 4, f"level {k}"
        assert k >= 9 or np.abs((found - expected).mean((0, 1))).max() < 10, f"level {k}"


def test_halving_takes_means_and_repeats_an_odd_edge() -> None:
    image = np.array(
        [[[0] * 3, [2] * 3, [10] * 3], [[4] * 3, [6] * 3, [20] * 3], [[7] * 3, [8] * 3, [9] * 3]], np.uint8
    )
    assert halved(image)[..., 0].tolist() == [[3, 15], [8, 9]]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, pd.DataFrame]]:
    tables = predictions("s")
    chosen, maps = write_maps(tmp_path, "s", tables["gate"])
    paths = write_tables(tmp_path, "s", tables)
    write_cells("s", paths, tmp_path / "cells", classes=SHEET, chosen=chosen, maps=maps)
    return tmp_path / "cells", tables


def test_points_are_the_table(written: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    folder, tables = written
    key, head = received(folder / "points.js")
    assert key == "s/points"
    ids = received(folder / "ids.js")[1].split("\n")
    table = tables["gate"].set_index("cell_id").loc[ids]
    assert sorted(ids) == sorted(tables["gate"]["cell_id"])
    names = [entry["name"] for entry in head["classes"]]
    assert names[: head["scored"]] == ["B_Cell", "T_Cell", "Endothelial", "Fibroblast"]
    assert names[head["scored"] :] == ["Hepatocyte"]
    for column in ("x", "y"):
        np.testing.assert_allclose(numbers(head[column], "f4"), table[f"{column}_px"], rtol=1e-6)
    for column in ("label", "prediction"):
        said = [names[code] if code != NONE else "" for code in numbers(head[column], "u1")]
        assert said == table[column].tolist()
    for column in ("confidence", "gate"):
        assert np.abs(numbers(head[column], "u1") / 255 - table[column]).max() <= 1 / 510 + 1e-9
    assert sorted(ids[entry["cell"]] for entry in head["maps"]) == [f"s-{i:04d}" for i in sorted(MAPPED)]


def test_details_hold_every_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "PART", 128)
    tables = predictions("s")
    # Branches may stand in another order than the fused model.
    tables["local"] = tables["local"].iloc[::-1]
    write_cells("s", write_tables(tmp_path, "s", tables), tmp_path / "cells", classes=SHEET)
    head = received(tmp_path / "cells/points.js")[1]
    names = [entry["name"] for entry in head["classes"]]
    ids = received(tmp_path / "cells/ids.js")[1].split("\n")
    files = sorted((tmp_path / "cells/details").iterdir(), key=lambda path: int(path.stem))
    assert [path.name for path in files] == ["0.js", "1.js", "2.js"]
    assert head["part"] == 128
    seen = []
    for path in files:
        key, part = received(path)
        assert key == f"s/details/{path.stem}"
        seen += part["ids"]
        scored = [f"prob_{name}" for name in names[: head["scored"]]]
        table = tables["gate"].set_index("cell_id").loc[part["ids"]]
        found = numbers(part["probabilities"], "f4").reshape(len(table), -1)
        np.testing.assert_array_equal(found, table[scored].to_numpy(np.float32))
        np.testing.assert_array_equal(numbers(part["gate"], "f4"), table["gate"].to_numpy(np.float32))
        for model in ("local", "global", "gate"):
            rows = tables[model].set_index("cell_id").loc[part["ids"]]
            says = part["models"][model]
            assert [names[code] for code in numbers(says["prediction"], "u1")] == rows["prediction"].tolist()
            np.testing.assert_array_equal(numbers(says["confidence"], "f4"), rows["confidence"].to_numpy(np.float32))
    assert seen == ids


def test_cells_without_a_place_are_counted(tmp_path: Path) -> None:
    tables = predictions("s")
    tables["gate"].loc[3:5, "y_px"] = np.nan
    write_cells("s", write_tables(tmp_path, "s", tables), tmp_path / "cells", classes=SHEET)
    head = received(tmp_path / "cells/points.js")[1]
    assert (head["cells"], head["unplaced"]) == (297, 3)
    assert np.isfinite(numbers(head["y"], "f4")).all()


def test_no_cell_at_all(tmp_path: Path) -> None:
    tables = {model: table.iloc[:0] for model, table in predictions("s").items()}
    write_cells("s", write_tables(tmp_path, "s", tables), tmp_path / "cells", classes=SHEET)
    head = received(tmp_path / "cells/points.js")[1]
    assert (head["cells"], head["x"], head["scored"]) == (0, "", len(CLASSES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="gate"), "holds no gate"),
        (lambda table: table.drop(columns="x_px"), "lacks columns"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "predicted twice"),
        (lambda table: table[[c for c in table if not c.startswith("prob_")]], "no probabilities"),
    ],
)
def test_faults_of_a_table_are_told(tmp_path: Path, change: Any, message: str) -> None:
    tables = predictions("s")
    tables["gate"] = change(tables["gate"])
    with pytest.raises(UserError, match=message):
        write_cells("s", write_tables(tmp_path, "s", tables), tmp_path / "cells", classes=SHEET)
    assert not (tmp_path / "cells").exists()


def test_maps_lie_over_their_windows(written: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    folder, _ = written
    entry = received(folder / "points.js")[1]["maps"][0]
    assert [p["explains"] for p in entry["pictures"]] == ["B_Cell", "Endothelial", "Endothelial", ""]
    for made, width in zip(entry["pictures"], (64, 64, 1024, 1024), strict=True):
        assert made["width"] == width
        with Image.open(folder / made["file"]) as image:
            assert image.size == (min(width, 256),) * 2
    image = np.full((512, 512, 3), 200, np.uint8)
    cam = np.zeros((512, 512), np.float32)
    cam[:256] = 1
    over = np.asarray(overlaid(image, cam))
    assert over.shape == (256, 256, 3)
    # Inferno ends in a pale yellow, (252, 255, 164).
    assert np.abs(over[20, 20] - (0.4 * 200 + 0.6 * np.array([252, 255, 164]))).max() < 2
    assert (over[-20, 20] == 200).all()


def test_shares_become_the_nearest_byte() -> None:
    assert share_bytes(np.array([0, 1, 0.5, np.nan, 1.2, 1 / 255])).tolist() == [0, 255, 128, 0, 255, 1]


def test_a_text_cannot_end_the_script(tmp_path: Path) -> None:
    write_chunk(tmp_path / "a.js", "k", {"id": "</script>\u2028é"})
    assert "</script" not in (tmp_path / "a.js").read_text()
    assert received(tmp_path / "a.js") == ("k", {"id": "</script>\u2028é"})


def test_page_is_whole_and_asks_no_other_host(tmp_path: Path) -> None:
    write_page(
        SOURCES, tmp_path / "index.html", tmp_path / "assets", tmp_path / "study.js",
        name="n", slides=[], windows={"local": 1, "global": 2}, mpp=0.25, synthetic=False,
    )  # fmt: skip
    html = (tmp_path / "index.html").read_text()
    for name in re.findall(r'(?:src|href)="((?!data:|#)[^"]+)"', html):
        assert (tmp_path / name).is_file(), name
    for path in [tmp_path / "index.html", *(tmp_path / "assets").rglob("*")]:
        if path.is_file() and "vendor" not in path.parts:
            text = path.read_text()
            assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]|@import|@font-face|\bfetch\(|XMLHttpRequest", text), path
            assert len(text.splitlines()) < 500
    assert (tmp_path / "assets/vendor/LICENSE.txt").is_file()
    with pytest.raises(UserError, match="page of the explorer is missing"):
        write_page(
            tmp_path / "no", tmp_path / "i.html", tmp_path / "a", tmp_path / "s.js",
            name="n", slides=[], windows={}, mpp=0.25, synthetic=False,
        )  # fmt: skip


def test_vendored_code_is_what_its_list_says() -> None:
    readme = (SOURCES / "vendor/README.md").read_text()
    script = (SOURCES / "vendor/openseadragon.min.js").read_bytes()
    assert hashlib.sha256(script).hexdigest() in readme
    version = re.search(rb"openseadragon (\d+\.\d+\.\d+)", script)
    assert version is not None
    assert f"| {version[1].decode()} |" in readme
    # Names of elements that scripts ask for are on the page.
    html = (SOURCES / "index.html").read_text()
    for path in (SOURCES / "js").glob("*.js"):
        for pair in re.findall(r'(?<![.\w])get\("([a-z-]+)"\)|getElementById\("([a-z-]+)"\)', path.read_text()):
            name = "".join(pair)
            assert f'id="{name}"' in html, f"{path.name}: {name}"


def test_number_of_cells_not_shown_is_that_of_the_table(tmp_path: Path) -> None:
    tables = write_tables(tmp_path, "s", predictions("s"))
    cells = tmp_path / "cells.parquet"
    for rows, expected in ((300, 0), (301, 1)):
        pd.DataFrame({"cell_id": range(rows)}).to_parquet(cells)
        write_cells("s", tables, tmp_path / "cells", classes=SHEET, cells=cells)
        assert f'"unpredicted":{expected},' in (tmp_path / "cells/points.js").read_text()
    pd.DataFrame({"cell_id": range(299)}).to_parquet(cells)
    with pytest.raises(UserError, match="fewer cells than predictions"):
        write_cells("s", tables, tmp_path / "cells", classes=SHEET, cells=cells)
    with pytest.raises(UserError, match="table of cells is missing"):
        write_cells("s", tables, tmp_path / "cells", classes=SHEET, cells=tmp_path / "no.parquet")


def test_maps_of_cells_that_are_not_shown_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = predictions("s")
    chosen, maps = write_maps(tmp_path, "s", made["gate"])
    paths = write_tables(tmp_path, "s", made)
    with caplog.at_level("WARNING", "nuclass"):
        write_cells("s", paths, tmp_path / "all", classes=SHEET, chosen=chosen, maps=maps)
        assert "activation maps" not in caplog.text
        fewer = {model: table.drop(index=MAPPED[0]) for model, table in made.items()}
        paths = write_tables(tmp_path, "s", fewer)
        write_cells("s", paths, tmp_path / "fewer", classes=SHEET, chosen=chosen, maps=maps)
    assert "s: 1 of 2 cells named for activation maps are not among the cells shown" in caplog.text
    assert len(list((tmp_path / "fewer/maps").iterdir())) == 4
