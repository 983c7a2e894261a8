"""Positions from tables: columns by name, frames stated or said, every form of text and Parquet."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nuclass.apply import tables_in
from nuclass.apply.positions import Positions, read_positions
from nuclass.core.errors import UserError
from nuclass.core.own_tables import fold, header_of, parse_columns

SHAPE = (1000, 1200)
MPP = 0.25
XY = np.array([(100.0, 200.0), (300.5, 400.25), (800.0, 900.0)])
IDS = ["a", "b", "c"]


def read(path: Path, **options: object) -> Positions:
    return read_positions(path, **({"mpp_he": MPP, "he_shape": SHAPE} | options))  # type: ignore[arg-type]


def refused(path: Path, **options: object) -> UserError:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    return caught.value


def table(x: str, y: str, scale: float = 1.0, /, **more: object) -> pd.DataFrame:
    return pd.DataFrame({**more, x: XY[:, 0] / scale, y: XY[:, 1] / scale})


def csv(path: Path, frame: pd.DataFrame, **options: object) -> Path:
    frame.to_csv(path, index=False, **options)
    return path


@pytest.mark.parametrize("form", ["csv", "tsv", "semicolon", "bar", "csv.gz", "utf-16", "cp1252", "bom", "parquet"])
def test_every_form_of_a_table_gives_the_same(tmp_path, form):
    frame = table("Centroid X µm", "Centroid Y µm", 4.0, **{"Object ID": IDS, "Name": "x, y"})
    path = tmp_path / "cells.txt"
    if form == "parquet":
        frame.to_parquet(path)
    elif form == "csv.gz":
        path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    else:
        options = {
            "tsv": {"sep": "\t"},
            "semicolon": {"sep": ";", "decimal": ","},
            "bar": {"sep": "|"},
            "utf-16": {"encoding": "utf-16"},
            "cp1252": {"encoding": "cp1252"},
            "bom": {"encoding": "utf-8-sig"},
        }.get(form, {})
        csv(path, frame, **options)
    found = read(path)
    assert found.kind == "table"
    assert found.cell_id.tolist() == IDS
    np.testing.assert_allclose(found.xy, XY)
    assert found.outlines is None
    assert found.source == "cells.txt: 3 positions of columns 'Centroid X µm' and 'Centroid Y µm', frame um"


@pytest.mark.parametrize(
    ("x", "y", "frame", "scale"),
    [
        ("x_he", "y_he", None, 1),
        ("Centroid X px", "Centroid Y px", None, 1),
        ("Centroid X Âµm", "Centroid Y Âµm", None, 4),
        ("x", "y", "he", 1),
        ("X", "Y", "um", 4),
        ("x", "y", "px@0.5", 2),
        ("x_um", "y_um", "um", 4),
        ("centroid_x", "centroid_y", "um@0.5", 2),
    ],
)
def test_usual_names(tmp_path, x, y, frame, scale):
    found = read(csv(tmp_path / "cells.csv", table(x, y, scale, id=[5, 6, 7])), frame=frame)
    np.testing.assert_allclose(found.xy, XY)
    assert found.cell_id.tolist() == ["5", "6", "7"]


def test_the_cells_table_of_a_slide(tmp_path):
    """As the workflow writes it: the H&E's px are taken whatever else is there."""
    frame = table("x_he", "y_he", cell_id=IDS, x_um=[1.0, 2, 3], y_um=[1.0, 2, 3], x_px=[9.0, 9, 9], y_px=[9.0, 9, 9])
    frame.to_parquet(tmp_path / "cells.parquet", index=False, compression="zstd")
    found = read(tmp_path / "cells.parquet")
    np.testing.assert_allclose(found.xy, XY)
    assert found.cell_id.tolist() == IDS
    found = read(tmp_path / "cells.parquet", frame="um")
    np.testing.assert_allclose(found.xy[:, 0], [4, 8, 12])


def test_columns_of_xenium_need_the_alignment(tmp_path):
    frame = table("x_centroid", "y_centroid", 1 / 0.2125, cell_id=IDS)
    path = csv(tmp_path / "cells.csv", frame)
    assert refused(path).what == "The frame of the positions is not stated"
    assert refused(path, frame="xenium_um").what == "Positions of a Xenium run need the alignment of the H&E"
    found = read(path, frame="xenium_um", alignment="grid", mpp_he=0.2125)
    np.testing.assert_allclose(found.xy, XY)


def test_stated_columns(tmp_path):
    frame = table("col", "row, y", name=IDS, x=[1.0, 2, 3], y=[3.0, 2, 1])
    path = csv(tmp_path / "cells.csv", frame)
    found = read(path, frame="he", columns="x=col,y=row, y,id=name")
    np.testing.assert_allclose(found.xy, XY)
    assert found.cell_id.tolist() == IDS
    found = read(path, frame="he", columns={"x": "col", "y": "row, y"})
    assert found.cell_id.tolist() == ["1", "2", "3"]
    error = refused(path, frame="he", columns="x=colum,y=y")
    assert error.what == "A stated column is not in the table"
    assert error.found == "name, x, y, col, row, y"
    assert error.fix == "name a column of the table. Did you mean 'col'?"


@pytest.mark.parametrize("text", ["", "x=a", "x=a,y=a", "a=x,b=y", "x=a,y=b,x=c", "x=,y=b", "q,x=a,y=b"])
def test_columns_that_cannot_be_understood(text):
    with pytest.raises(UserError) as caught:
        parse_columns(text)
    assert caught.value.what == "The columns cannot be understood"


def test_names_are_folded():
    assert fold("Centroid X µm") == fold("Centroid X μm") == fold("centroid_x_um") == "centroid_x_um"
    assert fold(" Object ID ") == "object_id"


def test_the_message_of_a_frame_that_is_not_stated(tmp_path):
    path = csv(tmp_path / "cells.csv", table("x", "y"))
    assert str(refused(path)) == (
        "The frame of the positions is not stated\n"
        f"  where:      {path}, columns 'x' and 'y'\n"
        "  found:      numbers that may be px or micrometres\n"
        "  expected:   he (px of the H&E at full resolution), um (micrometres from the image's top left corner), "
        "px@0.25 (px of 0.25 um, or of another size), morph (morphology px) or xenium_um (micrometres of a Xenium run);"
        " the last two need --alignment\n"
        "  to mend it: add --frame he, --frame um, --frame px@0.25 or another of these"
    )


def test_columns_that_are_unclear(tmp_path):
    two = csv(tmp_path / "two.csv", table("x", "y", centroid_x=[1, 2, 3], centroid_y=[1, 2, 3]))
    error = refused(two, frame="he")
    assert error.what == "Several columns may hold the positions"
    assert error.fix == "state them: --columns x=NAME,y=NAME or x=NAME,y=NAME,id=NAME"
    twice = csv(tmp_path / "twice.csv", table("x", "y", X=[1, 2, 3]))
    assert refused(twice, frame="he").what == "Several columns may hold the positions"
    none = csv(tmp_path / "none.csv", table("a", "b"))
    error = refused(none)
    assert (error.what, error.found) == ("No columns with positions were found", "a, b")
    other = csv(tmp_path / "other.csv", table("x_he", "y_he"))
    assert refused(other, frame="um").what == "The columns of the positions are in another frame than um"


def test_types_of_qupath(tmp_path):
    """A table of all objects: cells beside the annotations they lie in."""
    frame = table("Centroid X px", "Centroid Y px", **{"Object type": ["Cell", "Annotation", "Cell"]})
    found = read(csv(tmp_path / "m.tsv", frame, sep="\t"))
    np.testing.assert_allclose(found.xy, XY[[0, 2]])
    assert "1 row of type annotation left out" in found.source
    frame["Object type"] = ["Annotation", "Tile", "Annotation"]
    found = read(csv(tmp_path / "m.tsv", frame, sep="\t"))
    assert len(found) == 2
    assert "1 row of type tile, core or image left out" in found.source


def test_rows_without_a_position_are_counted(tmp_path):
    frame = table("x_he", "y_he", cell_id=["a", "", "c"])
    frame.loc[1, "x_he"] = np.nan
    for path in (csv(tmp_path / "cells.csv", frame), csv(tmp_path / "na.csv", frame, na_rep="NA")):
        found = read(path)
        assert found.cell_id.tolist() == ["a", "c"]
        assert "1 row without a position left out" in found.source
    frame.to_parquet(tmp_path / "cells.parquet")
    assert read(tmp_path / "cells.parquet").cell_id.tolist() == ["a", "c"]
    frame["x_he"] = np.nan
    error = refused(csv(tmp_path / "cells.csv", frame))
    assert (error.what, error.found) == ("The table holds no positions", "3 rows without a position left out")


def test_values_that_are_no_numbers(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("x_he,y_he\n1,2\n3,abc\n")
    assert str(refused(path)) == (
        "A position is not a number on any slide\n"
        f"  where:      {path}, column 'y_he', row 2\n"
        "  found:      'abc'\n"
        "  expected:   a number of at most 1e+09, or nothing"
    )
    path.write_text("x_he,y_he\n1,2\n1e308,3\n")
    assert refused(path).where == f"{path}, column 'x_he', row 2"
    pd.DataFrame({"x_he": [1.0, np.inf], "y_he": [1.0, 2.0]}).to_parquet(tmp_path / "cells.parquet")
    assert refused(tmp_path / "cells.parquet").found == "'inf'"
    pd.DataFrame({"x_he": [[1.0], [2.0]], "y_he": [1.0, 2.0]}).to_parquet(tmp_path / "cells.parquet")
    assert refused(tmp_path / "cells.parquet").found == "column 'x_he' holds lists or objects"


def test_ids_that_are_not_unique(tmp_path):
    path = csv(tmp_path / "cells.csv", table("x_he", "y_he", cell_id=["a", "b", "a"]))
    found = read(path)
    assert found.cell_id.tolist() == ["1", "2", "3"]
    assert "column 'cell_id' not used as id, as its values are not unique" in found.source
    error = refused(path, columns="x=x_he,y=y_he,id=cell_id")
    assert (error.what, error.found) == ("The ids of the cells are not unique", "'a' more than once")
    frame = table("x_he", "y_he", label=[0.5, np.nan, 0.25])
    assert read(csv(tmp_path / "label.csv", frame)).cell_id.tolist() == ["1", "2", "3"]


def test_tables_that_cannot_be_read(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("x_he,y_he\n1,2\n3\n")
    error = refused(path)
    assert error.what == "The table of positions cannot be read"
    assert "Expected 2 columns, got 1" in error.found
    path.write_text("x_he,y_he\n")
    assert refused(path).what in ("The table holds no rows", "The table holds no positions")
    path.write_text("1,2\n3,4\n")
    assert refused(path).found == "the first line holds numbers and no names of columns"
    path.write_text("\n1,2\n")
    assert refused(path).what == "The table of positions cannot be read"
    frame = table("x_he", "y_he")
    frame.to_parquet(tmp_path / "cells.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cells.parquet").read_bytes()[:-10])
    assert refused(tmp_path / "cut.parquet").where == tmp_path / "cut.parquet"


def test_a_line_without_an_end_takes_no_memory(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("x_he,y_he" + "a" * 3_000_000)
    assert refused(path).found == "the first line has more than 1,048,576 letters"
    path.write_text("x_he,y_he\n1,2\n" + "1" * 9_000_000)
    assert refused(path).what == "The table of positions cannot be read"


def test_large_tables_in_pieces(tmp_path):
    """More rows than a piece holds, in CSV and in Parquet."""
    n = 90_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"cell_id": np.arange(n), "x_he": rng.uniform(0, 1200, n), "y_he": rng.uniform(0, 1000, n)})
    frame.to_parquet(tmp_path / "cells.parquet", row_group_size=35_000)
    for path in (csv(tmp_path / "cells.csv", frame), tmp_path / "cells.parquet"):
        found = read(path)
        np.testing.assert_allclose(found.xy, frame[["x_he", "y_he"]])
        assert found.cell_id[[0, -1]].tolist() == ["0", str(n - 1)]


def test_micrometres_of_a_table_that_may_be_of_another_scale_are_asked_after(tmp_path):
    path = csv(tmp_path / "measurements.csv", table("Centroid X µm", "Centroid Y µm", 4.0))
    np.testing.assert_allclose(read(path, mpp_file=MPP).xy, XY)
    assert str(refused(path, mpp_file=0.2125)) == (
        "It is not clear what the micrometres of the positions are\n"
        f"  where:      {path}\n"
        "  found:      columns in um; the H&E's file says 0.2125 um/px, --mpp 0.25\n"
        "  expected:   the scale by which they were reckoned\n"
        "  to mend it: give --frame um@0.2125 if by that of the file, as QuPath does, or --frame um if by --mpp"
    )
    np.testing.assert_allclose(read(path, mpp_file=0.2125, frame="um").xy, XY)
    np.testing.assert_allclose(read(path, mpp_file=0.2125, frame="um@0.5").xy, XY / 2)


@pytest.mark.parametrize(
    ("mpp_file", "one"), [(MPP * 1.0096, False), (MPP * 1.002, False), (MPP * 1.00005, True), (MPP - 1e-4, True)]
)
def test_two_scales_are_one_where_they_lead_to_the_same_nucleus(tmp_path, mpp_file, one):
    """On a slide of 20,000 px: a scale that is 1 % off leads 200 px away."""
    path = csv(tmp_path / "measurements.csv", table("Centroid X µm", "Centroid Y µm", 4.0))
    options = {"mpp_file": mpp_file, "he_shape": (1000, 20_000)}
    if one:
        np.testing.assert_allclose(read(path, **options).xy, XY)
    else:
        assert refused(path, **options).what == "It is not clear what the micrometres of the positions are"


def test_micrometres_by_pixels_that_are_not_square(tmp_path):
    """QuPath multiplies x by the width of a px and y by its height."""
    um = table("Centroid X µm", "Centroid Y µm", 1 / MPP)
    um["Centroid Y µm"] *= 0.997
    path = csv(tmp_path / "measurements.csv", um)
    found = read(path, mpp_file=MPP, aspect_file=0.997)
    np.testing.assert_allclose(found.xy, XY)
    assert "0.997 of its width" in found.source
    np.testing.assert_allclose(read(path, frame=f"um@{MPP}", mpp_file=MPP, aspect_file=0.997).xy, XY)
    # Micrometres by another scale than the file's know nothing of its pixels.
    by_given = read(path, frame="um", mpp_file=MPP * 1.5, aspect_file=0.997)
    np.testing.assert_allclose(by_given.xy, XY * (1, 0.997))


def test_cells_without_names_are_numbered_by_their_rows(tmp_path):
    (tmp_path / "cells.csv").write_text("x_he,y_he\n10,10\n,\n30,30\n")
    found = read(tmp_path / "cells.csv")
    assert found.cell_id.tolist() == ["1", "3"]
    assert "cells numbered by their rows" in found.source


def test_an_alignment_that_is_not_used_is_refused(tmp_path):
    error = refused(csv(tmp_path / "cells.csv", table("x_he", "y_he")), alignment="grid")
    assert error.what == "The option --alignment has no use with these positions"
    assert error.found == "--alignment grid with a table in the frame he"


# QuPath's measurements of several images


def of_images(*names: str) -> pd.DataFrame:
    """Three cells an image, 1 px further to the right in each; their ids are the same in all."""
    parts = [table("Centroid X px", "Centroid Y px", **{"Image": name, "Object ID": IDS}) for name in names]
    return pd.concat([part.assign(**{"Centroid X px": XY[:, 0] + i}) for i, part in enumerate(parts)])


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("names", "image", "taken"),
    [
        (["a.svs", "b.svs", "c.svs"], "folder/b.svs", 1),
        (["a.svs", "b", "c.svs"], "b.svs", 1),
        (["a", "b", "c"], "c.ome.tif", 2),
        (["a.ndpi", "b.ndpi"], "a.svs", 0),
        (["a.ome.tif", "a.svs", "b.svs"], "a.svs", 1),
        (["a", "a.svs", "b.svs"], "a.tif", 0),
    ],
)
def test_the_rows_of_the_slide_are_taken(tmp_path, form, names, image, taken):
    frame, path = of_images(*names), tmp_path / "measurements"
    if form == "csv":
        csv(path, frame, sep="\t")
    else:
        frame.assign(Image=frame["Image"].astype("category")).to_parquet(path)
    found = read(path, image=image)
    np.testing.assert_allclose(found.xy, np.add(XY, (taken, 0)))
    assert found.cell_id.tolist() == IDS
    others = 3 * (len(names) - 1)
    assert found.source == (
        "measurements: 3 positions of columns 'Centroid X px' and 'Centroid Y px', frame he; "
        f"{others} rows of other images left out"
    )


@pytest.mark.parametrize(
    ("names", "image", "found", "expected"),
    [
        (["b.svs", "c.svs"], "a.svs", "b.svs, c.svs", "one of the name of the slide's file, a.svs"),
        (["a.ndpi", "a.tif"], "a.svs", "a.ndpi, a.tif", "one of the name of the slide's file, a.svs"),
        ([f"s{i}.svs" for i in range(8)], "a.svs", None, "one of the name of the slide's file, a.svs"),
        (["a.svs", "b.svs"], None, "a.svs, b.svs", "a table of one image"),
    ],
)
def test_images_of_which_none_is_the_slide_are_told(tmp_path, names, image, found, expected):
    path = csv(tmp_path / "measurements.tsv", of_images(*names), sep="\t")
    found = found or "s0.svs, s1.svs, s2.svs, s3.svs, s4.svs, s5.svs and 2 more"
    assert str(refused(path, image=image)) == (
        "The table is of several images, and it is not clear which of them is the slide\n"
        f"  where:      {path}, column 'Image'\n"
        f"  found:      {found}\n"
        f"  expected:   {expected}\n"
        "  to mend it: export the measurements of this image alone"
    )


def test_one_image_may_have_any_name(tmp_path):
    path = csv(tmp_path / "m.tsv", of_images("Slide 7 of the project"), sep="\t")
    assert len(read(path, image="a.svs")) == 3
    frame = of_images("a.svs").assign(Image=["a.svs", "", "a.svs"])
    assert len(read(csv(tmp_path / "m.tsv", frame, sep="\t"), image="b.svs")) == 3


def test_types_and_lost_positions_count_for_the_slide_alone(tmp_path):
    frame = of_images("a.svs", "b.svs")
    frame["Object type"] = ["Annotation", "Annotation", "Annotation", "Cell", "Annotation", "Tile"]
    frame.loc[frame["Image"] == "a.svs", "Centroid X px"] = [1.0, 2.0, np.nan]
    path = csv(tmp_path / "m.tsv", frame, sep="\t")
    assert read(path, image="a.svs").source.endswith(
        "frame he; 3 rows of other images left out; 1 row without a position left out"
    )
    found = read(path, image="b.svs")
    assert found.cell_id.tolist() == ["a"]
    assert found.source.endswith("1 row of type tile, core or image left out; 1 row of type annotation left out")


def test_the_header_alone(tmp_path):
    path = csv(tmp_path / "m.csv", table("Centroid X µm", "Centroid Y µm"), sep=";", encoding="cp1252")
    header = header_of(path)
    assert (header.names, header.delimiter, header.encoding) == (["Centroid X µm", "Centroid Y µm"], ";", "cp1252")
    assert header_of(path, tables_in._BLOCK) == header
