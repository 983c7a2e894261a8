"""The alignment file: every spelling of a matrix, keypoints with wrong points, archives, and broken input."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuclass.core.bundle_source import parse_matrix
from nuclass.core.errors import UserError
from nuclass.xenium.alignment import read_alignment
from nuclass.xenium.keypoints import fit_keypoints

MIRRORED = np.array([[-0.01, 1.288, 12.5], [1.288, 0.01, -77.0], [0, 0, 1]])
HEADER = ["fixedX", "fixedY", "alignmentX", "alignmentY"]
PIXEL = 0.2125
on_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)


def written(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    angle, scale = draw(st.floats(-180, 180)), draw(st.floats(0.1, 10))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    mirror = draw(st.sampled_from([1, -1]))
    last = draw(st.sampled_from([(0.0, 0.0, 1.0), (-8.39854141e-08, -9.91112632e-07, 1.03706895)]))
    return np.array([[cos, -mirror * sin, draw(numbers)], [sin, mirror * cos, draw(numbers)], last])


def spell(matrix: np.ndarray, draw: st.DrawFn) -> bytes:
    """Write a matrix as some program may write it."""
    separator, decimal = draw(
        st.sampled_from(
            [(",", "."), (", ", "."), (" , ", "."), (";", "."), ("\t", "."), (" ", "."), (";", ","), ("\t", ",")]
        )
    )
    form = draw(st.sampled_from(["%.18e", "%r"]))
    quote = draw(st.sampled_from(["", '"'])) if separator != " " else ""
    rows = [[quote + (form % float(v)).replace(".", decimal) + quote for v in row] for row in matrix]
    head, index = draw(st.booleans()), draw(st.booleans())
    if head and index:
        rows = [[str(i), *row] for i, row in enumerate(rows)]
    if head:
        names = draw(st.sampled_from([["x", "y", "offset"], ["0", "1", "2"]]))
        rows.insert(0, (['""' if separator == " " else "", *names] if index else names))
    lines = [draw(st.sampled_from(["", " "])) * (separator != "\t") + separator.join(row) for row in rows]
    if draw(st.booleans()):
        lines.insert(0, "# exported, by someone")
    ending = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = ending.join(lines) + ending * draw(st.integers(0, 2))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    return text.encode(encoding)


@on_one_folder
@given(matrices(), st.data())
def test_any_spelling_is_read_back_exactly(tmp_path: Path, matrix: np.ndarray, data: st.DataObject) -> None:
    alignment = read_alignment(written(tmp_path, spell(matrix, data.draw)))
    np.testing.assert_array_equal(alignment.matrix, matrix)
    assert (alignment.kind, alignment.unit, alignment.fit) == ("matrix", "morphology_px", None)


def test_real_files(real_data: Path) -> None:
    folder = real_data / "alignments"
    skin = read_alignment(folder / "Xeniumranger_V1_hSkin_Melanoma_Add_on_FFPE_he_imagealignment.csv").matrix
    assert skin[0].tolist() == [0.0018369815247865553, 0.6440103822350116, 1154.5213262768684]
    assert np.sqrt(abs(np.linalg.det(skin[:2, :2]))) * PIXEL == pytest.approx(0.13685, abs=1e-5)
    np.testing.assert_array_equal(
        read_alignment(folder / "skin_melanoma_addon_tutorial_alignment_matrix.csv").matrix, skin
    )
    homography = read_alignment(folder / "janesick_breast_rep1_morphology_to_visium_homography.csv")
    assert homography.matrix[2].tolist() == [-8.39854141e-08, -9.91112632e-07, 1.03706895]
    breast = read_alignment(folder / "KB_Xenium_Prime_Breast_Cancer_FFPE_he_imagealignment.csv")
    assert (breast.matrix.dtype, breast.unit) == (np.float64, "morphology_px")


def test_a_data_frame_with_a_counting_header_has_one(tmp_path: Path) -> None:
    pd.DataFrame(MIRRORED).to_csv(tmp_path / "a.csv", index=False)
    np.testing.assert_array_equal(read_alignment(tmp_path / "a.csv").matrix, MIRRORED)
    pd.DataFrame(MIRRORED).to_csv(tmp_path / "b.csv")
    np.testing.assert_array_equal(read_alignment(tmp_path / "b.csv").matrix, MIRRORED)
    pd.DataFrame(MIRRORED[:2]).to_csv(tmp_path / "b.csv", index=False)
    np.testing.assert_array_equal(read_alignment(tmp_path / "b.csv").matrix, MIRRORED)
    pd.DataFrame(MIRRORED[:2], columns=["a", "b", "c"]).to_csv(tmp_path / "b.csv")
    np.testing.assert_array_equal(read_alignment(tmp_path / "b.csv").matrix, MIRRORED)
    np.savetxt(tmp_path / "c.csv", MIRRORED, header="H&E to morphology")
    np.testing.assert_array_equal(read_alignment(tmp_path / "c.csv").matrix, MIRRORED)


def test_rows_that_excel_leaves_empty(tmp_path: Path) -> None:
    text = "-0.01,1.288,12.5,\n1.288,0.01,-77,\n0,0,1,\n,,,\n,,,\n"
    np.testing.assert_array_equal(read_alignment(written(tmp_path, text)).matrix, MIRRORED)


def test_two_rows_get_the_last_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        alignment = read_alignment(written(tmp_path, "-0.01,1.288,12.5\n1.288,0.01,-77.0\n"))
    np.testing.assert_array_equal(alignment.matrix, MIRRORED)
    assert "the last row is 0, 0, 1" in caplog.text


def test_decimal_commas(tmp_path: Path) -> None:
    text = "-0,01;1,288;12,5\r\n1,288;0,01;-77\r\n0;0;1\r\n"
    np.testing.assert_array_equal(read_alignment(written(tmp_path, text)).matrix, MIRRORED)
    quoted = '"-0,01","1,288","12,5"\n"1,288","0,01","-77"\n0,0,1\n'
    np.testing.assert_array_equal(read_alignment(written(tmp_path, quoted)).matrix, MIRRORED)
    with pytest.raises(UserError, match="decimals or thousands") as caught:
        read_alignment(written(tmp_path, "1,289;2,500;1,000\n1;2;3\n0;0;1\n"))
    assert str(caught.value.where).endswith("a.csv, line 1")
    assert caught.value.found == "1,289"


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("Xenium_Atera_he_alignment.csv", "unsettled"),
        ("https://host.example/x/WTA_HE_alignment.csv?sign=1", "unsettled"),
        ("V1_he_imagealignment.csv", "morphology_px"),
        ("alignment.csv", "morphology_px"),
    ],
)
def test_the_name_says_whether_the_unit_is_settled(tmp_path: Path, name: str, unit: str) -> None:
    path = written(tmp_path, "1,0,0\n0,1,0\n0,0,1\n", "slide_he_imagealignment.csv")
    assert read_alignment(path, name=name).unit == unit
    if "/" not in name:
        assert read_alignment(written(tmp_path, "1,0,0\n0,1,0\n0,0,1\n", name)).unit == unit


@pytest.mark.parametrize(
    "text",
    [
        "-0.01,1.288,12.5,1.288,0.01,-77",
        "-0.01 1.288 12.5; 1.288 0.01 -77; 0 0 1",
        "-.01,1.288,12.5,1.288,1e-2,-77,0,0,1",
    ],
)
def test_matrix_typed_in_the_sheet(text: str) -> None:
    np.testing.assert_array_equal(parse_matrix(text), MIRRORED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3,4", "found:      4 in"),
        ("1,0,0,0,one,0", "found:      'one' in"),
        ("1,0,0,0,nan,0", "cannot be inverted"),
        ("1,1,0,1,1,0", "cannot be inverted"),
    ],
)
def test_wrong_matrix_in_the_sheet(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_matrix(text)


def keypoints(n: int, noise_um: float, seed: int, wrong: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Return keypoints of the mirrored map with noise (standard deviation per axis) and the wrong ones' rows."""
    random = np.random.default_rng(seed)
    he = random.uniform(0, 2e4, (n, 2))
    fixed = he @ MIRRORED[:2, :2].T + MIRRORED[:2, 2] + random.normal(0, noise_um / PIXEL, (n, 2))
    rows = random.permutation(n)[:wrong]
    angle = random.uniform(0, 2 * np.pi, wrong)
    fixed[rows] += random.uniform(300, 3000, (wrong, 1)) / PIXEL * np.column_stack([np.cos(angle), np.sin(angle)])
    return pd.DataFrame(np.hstack([fixed, he]), columns=HEADER), np.sort(rows)


def largest_error_um(matrix: np.ndarray) -> float:
    corners = np.array([[0, 0, 1], [2e4, 0, 1], [0, 2e4, 1], [2e4, 2e4, 1.0]])
    return float(np.linalg.norm((corners @ (matrix - MIRRORED).T)[:, :2], axis=1).max() * PIXEL)


def leverage(he: np.ndarray) -> float:
    """The expected error at the worst corner of a least-squares map of these points, in units of their noise."""
    design = np.column_stack([he, np.ones(len(he))])
    corners = np.array([[0, 0, 1], [2e4, 0, 1], [0, 2e4, 1], [2e4, 2e4, 1.0]])
    return float(np.sqrt(np.einsum("ij,jk,ik->i", corners, np.linalg.pinv(design.T @ design), corners).max()))


@settings(deadline=None, max_examples=40)
@given(st.integers(6, 40), st.floats(0, 5), st.integers(0, 10_000))
def test_noisy_keypoints_recover_the_map(n: int, noise: float, seed: int) -> None:
    frame, _ = keypoints(n, noise, seed)
    points = frame.to_numpy()
    matrix, fit = fit_keypoints(points[:, 2:], points[:, :2], pixel_size=PIXEL, robust=False)
    assert largest_error_um(matrix) <= 6 * noise * leverage(points[:, 2:]) + 1e-3
    assert fit.rmse_um <= 3 * noise + 1e-6
    assert fit.used.all()


@settings(deadline=None, max_examples=40)
@given(st.integers(10, 30), st.floats(0.1, 5), st.integers(0, 10_000))
def test_a_fifth_of_the_points_wrong_does_not_fool_it(n: int, noise: float, seed: int) -> None:
    frame, wrong = keypoints(n, noise, seed, wrong=n // 5)
    points = frame.to_numpy()
    matrix, fit = fit_keypoints(points[:, 2:], points[:, :2], pixel_size=PIXEL)
    assert not fit.used[wrong].any()
    assert fit.used.sum() >= 0.6 * n
    # What is left is plain least squares over the points that were used, with the error that those allow.
    used = points[fit.used]
    least, _ = fit_keypoints(used[:, 2:], used[:, :2], pixel_size=PIXEL, robust=False)
    np.testing.assert_allclose(matrix, least, rtol=1e-9, atol=1e-9)
    assert largest_error_um(matrix) <= 6 * noise * leverage(used[:, 2:]) + 1e-3
    assert fit.worst[0][0] - 1 in wrong
    plain, _ = fit_keypoints(points[:, 2:], points[:, :2], pixel_size=PIXEL, robust=False)
    assert largest_error_um(plain) > 20


def test_five_points_one_wrong() -> None:
    frame, wrong = keypoints(5, 1.0, 3, wrong=1)
    points = frame.to_numpy()
    _, fit = fit_keypoints(points[:, 2:], points[:, :2], pixel_size=PIXEL)
    assert np.flatnonzero(~fit.used).tolist() == wrong.tolist()


def test_good_points_are_all_used() -> None:
    for seed in range(20):
        points = keypoints(8, 3.0, seed)[0].to_numpy()
        fit = fit_keypoints(points[:, 2:], points[:, :2], pixel_size=PIXEL)[1]
        assert fit.used.sum() >= 7


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_keypoints_file(tmp_path: Path, separator: str, caplog: pytest.LogCaptureFixture) -> None:
    frame, wrong = keypoints(10, 2.0, 1, wrong=2)
    frame = frame.rename(columns=str.upper).assign(name="point, with comma", id=range(10))
    frame = frame[["name", "ALIGNMENTY", "FIXEDX", "id", "FIXEDY", "ALIGNMENTX"]]
    frame.to_csv(
        tmp_path / "points.csv", index=separator == ",", sep=separator, decimal="," if separator == ";" else "."
    )
    with caplog.at_level(logging.INFO):
        alignment = read_alignment(tmp_path / "points.csv", pixel_size=PIXEL)
    assert (alignment.kind, alignment.unit) == ("keypoints", "morphology_px")
    fit = alignment.fit
    assert fit is not None
    assert (fit.n, fit.model) == (10, "affine")
    assert np.flatnonzero(~fit.used).tolist() == wrong.tolist()
    assert {row - 1 for row, _ in fit.worst[:2]} == set(wrong)
    assert 0.5 < fit.rmse_um < 5
    assert "2 of 10 keypoints left out as wrong: point" in caplog.text
    everything = read_alignment(tmp_path / "points.csv", pixel_size=PIXEL, robust=False)
    assert everything.fit is not None
    assert everything.fit.used.all()
    assert everything.fit.rmse_um > 100
    assert read_alignment(tmp_path / "points.csv", pixel_size=2 * PIXEL, robust=False).fit.rmse_um == pytest.approx(
        2 * everything.fit.rmse_um
    )


def test_three_keypoints_tell_no_residual(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keypoints(3, 0.0, 0)[0].to_csv(tmp_path / "points.csv", index=False)
    alignment = read_alignment(tmp_path / "points.csv")
    np.testing.assert_allclose(alignment.matrix, MIRRORED, atol=1e-6)
    assert alignment.fit is not None
    assert np.isnan(alignment.fit.rmse_um)
    assert alignment.fit.worst == []
    assert "three keypoints fix the map exactly" in caplog.text


def test_unusable_keypoints(tmp_path: Path) -> None:
    frame, _ = keypoints(6, 0.0, 0)
    path = tmp_path / "points.csv"
    frame.head(2).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"Too few keypoints[\s\S]*found: +2 points"):
        read_alignment(path)
    frame.assign(alignmentY=2 * frame["alignmentX"]).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"on one line[\s\S]*on a line in the H&E image"):
        read_alignment(path)
    frame.drop(columns="fixedY").to_csv(path, index=False)
    with pytest.raises(UserError, match=r"lacks columns[\s\S]*expected: +fixedY"):
        read_alignment(path)
    frame.astype(object).replace({"alignmentX": {frame["alignmentX"][4]: "here"}}).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"line 6, value 3[\s\S]*'here'"):
        read_alignment(path)
    written(tmp_path, ",".join(HEADER) + "\n1,2,3,4\n1,2,3\n", "points.csv")
    with pytest.raises(UserError, match=r"too short[\s\S]*line 3"):
        read_alignment(path)


def archive(folder: Path, members: dict[str, bytes]) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, content in members.items():
            out.writestr(name, content)
    return written(folder, buffer.getvalue(), "export.zip")


def test_explorer_archive(tmp_path: Path) -> None:
    matrix = b"-0.01,1.288,12.5\r\n1.288,0.01,-77.0\r\n0,0,1"
    points = keypoints(6, 1.0, 0)[0].to_csv(index=False).encode()
    both = {"a/keypoints.csv": points, "a/matrix.csv": matrix, "__MACOSX/a/._matrix.csv": b"\0\0"}
    alignment = read_alignment(archive(tmp_path, both))
    assert alignment.kind == "matrix"
    np.testing.assert_array_equal(alignment.matrix, MIRRORED)
    assert read_alignment(archive(tmp_path, {"keypoints.csv": points, "notes.txt": b"hello"})).kind == "keypoints"
    with pytest.raises(
        UserError, match=r"holds no alignment[\s\S]*found: +notes.txt: the alignment is not a 3x3 matrix"
    ):
        read_alignment(archive(tmp_path, {"notes.txt": b"hello", "a.png": b"x"}))
    with pytest.raises(UserError, match=r"holds no alignment[\s\S]*found: +a.png, b.png"):
        read_alignment(archive(tmp_path, {"a.png": b"x", "b.png": b"x"}))
    with pytest.raises(UserError, match="several matrices"):
        read_alignment(archive(tmp_path, {"a.csv": matrix, "b.csv": matrix.replace(b"12.5", b"13.5")}))
    path = archive(tmp_path, both)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="archive cannot be read"):
        read_alignment(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1,0\n0,1\n0,0\n", "3 lines of 2 values"),
        (b"1,0,0\n0,1,0\n0,0,1\n0,0,1", "4 lines of 3 values"),
        (b"1,0,0\n", "1 line of 3 values"),
        (b"1,0,zero\n0,1,0\n0,0,1", "line 1, value 3"),
        (b"1,0,0\n0,nan,0\n0,0,1", "line 2, value 2"),
        (b"1,0,inf\n0,1,0\n0,0,1", "line 1, value 3"),
        (b"# a comment\n\n1,0,0\n0,1_0,0\n0,0,1", "line 4, value 2"),
        (b"1,1,0\n1,1,0\n0,0,1", "cannot be inverted"),
        (b"1,0,0\n0,1,0\n1e3,5,1", "The alignment matrix is transposed"),
        (b"x,y,z\n0,1,0\n0,one,1", "line 1, value 1"),
        (b"1,0,0\n0,1,0\n0,0,0", "The last row of the alignment matrix is all zero"),
        (b"1,0,5\n0,1,0\n1,0,0", "cannot be inverted"),
        (b"", "is empty"),
        (b"# only this\n", "is empty"),
        (b"\xff\xfe", "is empty"),
        (b"\xe9\xff,1,2", "not a 3x3 matrix"),
        (b"\x01\x02\xff\xfe,1,2", "is not text"),
        (b"\0\0\0\0", "is not text"),
        (b"II*\0rest", "The alignment file is a TIFF image"),
        (b"\x89PNG\r\n", "The alignment file is a PNG image"),
        (b"\xff\xd8\xff\xe0", "The alignment file is a JPEG image"),
        (b"\n <!DOCTYPE html><html>403</html>", "The alignment file is a web page, not a table"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
    ],
)
def test_broken_alignments(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path, content, "broken.csv")
    with pytest.raises(UserError, match=message) as caught:
        read_alignment(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "-1.0D-02,1.288D0,12.5\n1.288d0,1.0d-2,-77\n0,0,1\n",
        '"-0.01,1.288,12.5"\r\n"1.288,0.01,-77"\r\n"0,0,1"\r\n',
        "\ufeff-0,01;1,288;12,5\r\n1,288;0,01;-77\r\n0;0;1\r\n",
        "-0,01;1,288;12,5\r\n1,288;0,01;-77\r\n",
        "sep=;\r\n-0.01;1.288;12.5\r\n1.288;0.01;-77\r\n0;0;1\r\n",
        "\u22120.01,1.288,12.5\n1.288,0.01,\u221277\n0,0,1\n",
        "[[-0.01, 1.288, 12.5], [1.288, 0.01, -77], [0, 0, 1]]",
        "[\n  [\n    -0.01,\n    1.288,\n    12.5\n  ],\n  [1.288, 0.01, -77],\n  [0, 0, 1]\n]\n",
        "array([[-1.000e-02,  1.288e+00,  1.250e+01],\n       [ 1.288e+00,  1.000e-02, -7.700e+01],\n [0., 0., 1.]])",
        "Stra\xdfe,Gr\xf6\xdfe,z\n-0.01,1.288,12.5\n1.288,0.01,-77\n0,0,1\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_matrices_from_other_programs(tmp_path: Path, content: str, encoding: str) -> None:
    encoded = content.encode(encoding) if encoding == "utf-8" else _in_windows(content)
    np.testing.assert_array_equal(read_alignment(written(tmp_path, encoded, "m.csv")).matrix, MIRRORED)


def _in_windows(content: str) -> bytes:
    return content.replace("\u2212", "-").lstrip("\ufeff").encode("cp1252")


def test_files_of_other_programs_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", MIRRORED)
    with pytest.raises(UserError, match="The alignment file is a NumPy array"):
        read_alignment(tmp_path / "m.npy")
    with zipfile.ZipFile(tmp_path / "m.xlsx", "w") as book:
        book.writestr("[Content_Types].xml", "")
        book.writestr("xl/workbook.xml", "")
    with pytest.raises(UserError, match=r"is an Excel workbook(.|\n)*save the sheet as CSV"):
        read_alignment(tmp_path / "m.xlsx")


def test_missing_alignment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The alignment file is missing"):
        read_alignment(tmp_path / "none.csv")
    with pytest.raises(UserError, match="The alignment file is missing"):
        read_alignment(tmp_path)
