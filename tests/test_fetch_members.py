"""Which files are taken of an output, and how a matrix is written in the sheet."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nuclass.core.bundle_source import determinant, parse_matrix
from nuclass.core.errors import UserError
from nuclass.core.files import sha256
from nuclass.xenium.fetch import fetch_slide
from nuclass.xenium.members import choose, focus_image, require
from nuclass.xenium.reader import read_bundle

TABLES = ["experiment.xenium", "cells.parquet", "cell_feature_matrix.h5", "nucleus_boundaries.parquet"]
CHANNELS_3 = [f"morphology_focus/morphology_focus_000{i}.ome.tif" for i in range(4)]
CHANNELS_4 = [
    *("morphology_focus/ch0000_dapi.ome.tif", "morphology_focus/ch0001_atp1a1_cd45_e-cadherin.ome.tif"),
    *("morphology_focus/ch0002_18s.ome.tif", "morphology_focus/ch0003_alphasma_vimentin.ome.tif"),
]
OLD = ["morphology.ome.tif", "morphology_focus.ome.tif", "morphology_mip.ome.tif"]


@pytest.mark.parametrize(
    ("names", "images", "image"),
    [
        (OLD, {"morphology_focus_filepath": "morphology_focus.ome.tif"}, "morphology_focus.ome.tif"),
        (OLD, {"morphology_focus_filepath": None, "morphology_mip_filepath": OLD[2]}, "morphology_mip.ome.tif"),
        (OLD, {}, "morphology_focus.ome.tif"),
        (CHANNELS_3, {"morphology_focus_filepath": CHANNELS_3[0]}, CHANNELS_3[0]),
        (CHANNELS_3, {"morphology_focus_filepath": "morphology_focus/"}, CHANNELS_3[0]),
        (CHANNELS_4, {"morphology_focus_filepath": f"./{CHANNELS_4[0]}"}, CHANNELS_4[0]),
        (CHANNELS_4, None, CHANNELS_4[0]),
        (["morphology.ome.tif"], {"morphology_focus_filepath": "../../elsewhere.tif"}, None),
    ],
)
def test_the_dapi_image_of_every_version(names: list[str], images: dict | None, image: str | None) -> None:
    assert focus_image(names, {"images": images}) == image
    chosen = choose([*TABLES, *names], {"images": images}, image=True)
    assert chosen.image == image
    assert [name for name in chosen.names if "morphology" in name] == ([image] if image else [])
    assert not choose([*TABLES, *names], {"images": images}, image=False).missing


def test_old_tables_and_what_can_be_missing() -> None:
    old = [
        "experiment.xenium",
        "cells.csv.gz",
        "cell_feature_matrix.h5",
        "nucleus_boundaries.csv.gz",
        "gene_panel.json",
    ]
    chosen = choose([*old, "transcripts.csv.gz", "analysis.tar.gz"], {}, image=False)
    assert chosen.names == tuple(old)
    assert set(chosen.absent) >= {"cell_boundaries.parquet", "metrics_summary.csv"}
    both = choose([*TABLES, "cells.csv.gz"], {}, image=False)
    assert "cells.csv.gz" not in both.names
    with pytest.raises(UserError, match=r"no experiment\.xenium; no cells\.parquet or cells\.csv\.gz"):
        require(choose([], {}, image=False), "here")


@given(
    st.lists(st.floats(-1e5, 1e5, allow_nan=False), min_size=9, max_size=9),
    st.booleans(),
    st.sampled_from([",", ";", " , "]),
)
def test_a_written_matrix_is_read_back(numbers: list[float], full: bool, between: str) -> None:
    if not full:
        numbers = [*numbers[:6], 0.0, 0.0, 1.0]
    matrix = np.reshape(numbers, (3, 3))
    assume(determinant(matrix.tolist()) != 0)
    read = parse_matrix(between.join(map(repr, numbers if full else numbers[:6])))
    np.testing.assert_array_equal(read, matrix)


@pytest.mark.parametrize("text", ["", "grid", "path/to/alignment.csv", "a, b.csv", "x;y.zip"])
def test_text_that_is_no_matrix(text: str) -> None:
    assert parse_matrix(text) is None


@pytest.mark.parametrize("text", ["1,0,0,0,nan,0", "0,0,0;0,0,0", "1,2,3;2,4,6", "1,inf,0;0,1,0"])
def test_matrix_that_cannot_be_inverted(text: str) -> None:
    with pytest.raises(UserError, match="a matrix cannot be inverted"):
        parse_matrix(text)


@pytest.mark.real
@pytest.mark.parametrize("zipped", [False, True])
def test_real_bundle(real_data: Path, tmp_path: Path, zipped: bool) -> None:
    bundle = real_data / "xenium_v3.0.0_mouse_ileum_tiny"
    path = bundle
    if zipped:
        path = tmp_path / "run_outs.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(bundle.rglob("*")):
                archive.write(file, f"run/{file.relative_to(bundle).as_posix()}")
    he = tmp_path / "he.png"
    he.write_bytes(b"any image")
    matrix = real_data / "alignments" / "Xeniumranger_V1_hSkin_Melanoma_Add_on_FFPE_he_imagealignment.csv"
    row = {"slide": "s", "source": "local", "path": str(path), "he": str(he), "alignment": str(matrix)}
    inventory = fetch_slide(row, tmp_path / "s", image=True)
    assert inventory["he"] == "s_he_image.png"
    assert inventory["image"] == CHANNELS_3[0]
    assert inventory["alignment_source"] == matrix.name
    assert inventory["xoa_version"].startswith("3.0.0")
    for name in ("cells.parquet", "gene_panel.json", "metrics_summary.csv", CHANNELS_3[0]):
        assert inventory["files"][name]["sha256"] == sha256(bundle / name)


def test_outlines_without_a_table(real_data: Path, tmp_path: Path) -> None:
    for name in ("experiment.xenium", "cells.parquet", "cell_feature_matrix.h5", "cells.zarr.zip"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).symlink_to(real_data / "xenium_v3.0.0_mouse_ileum_tiny" / name)
    (tmp_path / "he.tif").write_bytes(b"x")
    row = {"slide": "s", "source": "local", "path": str(tmp_path / "run" / "experiment.xenium")}
    row |= {"he": str(tmp_path / "he.tif"), "alignment": "grid"}
    assert "cells.zarr.zip" in fetch_slide(row, tmp_path / "s")["files"]
    assert (read_bundle(tmp_path / "s").cells()["centroid"] == "nucleus").all()


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"\xff\xfe\0", "A file is not text"), (b"[]", "does not hold a JSON object"), (b"<html>", "is a web page")],
)
def test_an_experiment_that_is_none(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "run").mkdir()
    for name in ("cells.parquet", "cell_feature_matrix.h5", "nucleus_boundaries.parquet"):
        (tmp_path / "run" / name).touch()
    (tmp_path / "run" / "experiment.xenium").write_bytes(content)
    (tmp_path / "he.tif").write_bytes(b"x")
    row = {"slide": "s", "source": "local", "path": str(tmp_path / "run"), "he": str(tmp_path / "he.tif")}
    with pytest.raises(UserError, match=told):
        fetch_slide({**row, "alignment": "grid"}, tmp_path / "s")
