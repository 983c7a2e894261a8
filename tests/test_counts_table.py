"""Tables of counts as people have them: what can be read is read right, everything else is told in words."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from nuclass.core.errors import UserError
from nuclass.labels.counts_frame import _NO_GENE, is_control
from nuclass.labels.counts_table import cells_of, read_counts
from nuclass.labels.panel_files import read_panel

KNOWN = {"CD3E", "CD3D", "MS4A1", "EPCAM", "DCN", "PECAM1", "CD68", "PCA3"}
GENES = ["CD3E", "MS4A1", "EPCAM", "DCN", "PECAM1", "CD68", "GAPDH", "C1orf112"]
IDS = [f"{k:03d}" for k in range(40)]
X = np.random.default_rng(0).poisson(1.2, (len(IDS), len(GENES)))
X[:, 6] = 1
FRAME = pd.DataFrame(X, index=pd.Index(IDS, name="cell_id"), columns=GENES)
SHARES = X / X.sum(1, keepdims=True)
LOGGED = np.log1p(SHARES * 1e4)
SCALED = (X - X.mean(0)) / (X.std(0) + 1)


def read(path: Path) -> anndata.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_counts(path, KNOWN)


def same(data: anndata.AnnData, counts: np.ndarray = X, ids: list[str] = IDS, genes: list[str] = GENES) -> None:
    assert list(data.obs_names) == ids
    assert list(data.var_names) == genes
    assert sparse.issparse(data.X)
    assert data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X.toarray(), counts)


def told(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- text and Parquet


@pytest.mark.parametrize("genes_in_rows", [False, True])
@pytest.mark.parametrize(
    ("name", "separator"),
    [
        *(("a.csv", ","), ("a.tsv", "\t"), ("a.txt", "\t"), ("a.txt", " "), ("a.csv", ";"), ("a.csv", "\t")),
        *(("a.csv.gz", ","), ("a.tsv.gz", "\t"), ("A.CSV", ","), ("a.v1.2.csv", ",")),
    ],
)
def test_text(tmp_path: Path, name: str, separator: str, genes_in_rows: bool) -> None:
    frame = FRAME.T if genes_in_rows else FRAME
    frame.to_csv(tmp_path / name, sep=separator, compression="gzip" if name.endswith("gz") else None)
    same(read(tmp_path / name))


@pytest.mark.parametrize("index", [None, "Unnamed: 0", "barcode", "gene"])
def test_the_first_column_may_be_called_anything(tmp_path: Path, index: str | None) -> None:
    FRAME.rename_axis(index).to_csv(tmp_path / "a.csv")
    same(read(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("name", "frame"),
    {
        "index": FRAME,
        "column": FRAME.reset_index(),
        "categories": FRAME.reset_index().astype({"cell_id": "category"}),
        "bytes": FRAME.reset_index().assign(cell_id=[name.encode() for name in IDS]),
        "nullable": FRAME.astype("Int32"),
        "genes in rows": FRAME.T,
        "genes in a column": FRAME.T.reset_index(names="symbol"),
    }.items(),
)
def test_parquet(tmp_path: Path, name: str, frame: pd.DataFrame) -> None:
    frame.to_parquet(tmp_path / "a.parquet")
    same(read(tmp_path / "a.parquet"))


def test_whole_numbers_as_ids(tmp_path: Path) -> None:
    FRAME.reset_index(drop=True).assign(cell=np.arange(40.0)).to_parquet(tmp_path / "a.parquet")
    same(read(tmp_path / "a.parquet"), ids=[str(k) for k in range(40)])


def test_as_r_writes_it(tmp_path: Path) -> None:
    plain = text(tmp_path / "a.tsv", "CD3E\tDCN\nr1\t1\t2\nr2\t0\t2\n")
    quoted = text(tmp_path / "a.txt", '"CD3E" "DCN"\n"r1" 1 2\n"r2" 0 2\n')
    for path in (plain, quoted):
        same(read(path), np.array([[1, 2], [0, 2]]), ["r1", "r2"], ["CD3E", "DCN"])


def test_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", b"\xef\xbb\xbfcell_id;CD3E;DCN\r\na;1,0;2,0\r\nb;3,0;0,0\r\n")
    same(read(path), np.array([[1, 2], [3, 0]]), ["a", "b"], ["CD3E", "DCN"])


def test_an_index_that_was_written_along_is_no_id(tmp_path: Path) -> None:
    FRAME.reset_index().to_csv(tmp_path / "a.csv")
    same(read(tmp_path / "a.csv"))


def test_ids_may_stand_in_any_column_that_says_so(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", "cell_type,CD3E,DCN,Cell_ID\nT,1,2,007\nT,2,1,008\n")
    same(read(path), np.array([[1, 2], [2, 1]]), ["007", "008"], ["CD3E", "DCN"])


def test_symbols_beside_other_names_of_the_genes(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", "gene_id,symbol,a,b\nENSG00000198851,CD3E,1,2\nENSG00000011465,DCN,0,3\n")
    same(read(path), np.array([[1, 0], [2, 3]]), ["a", "b"], ["CD3E", "DCN"])


def test_columns_that_are_no_genes_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {
        "cell_type": "T", "n_counts": 3, "leiden": 1, "total_counts": 9, "nCount_RNA": 9, "pct_counts_mt": 0.5,
        "UMAP_1": -1.5, "UMAP1": -2.0, "PC_1": -0.1, "flag": True, "fov": 3, "X": 4.0, "doublet_score": 0.2,
        "NegControlProbe_00042": 1, "BLANK_0001": 1, "UnassignedCodeword_0006": 1, "cell_area": 41.5,
    }  # fmt: skip
    FRAME.assign(**other).to_csv(tmp_path / "a.csv")
    same(read(tmp_path / "a.csv"))
    assert "columns that are no genes are left out: cell_type, n_counts, leiden" in caplog.text
    assert "and 7 more" in caplog.text


def test_a_known_gene_is_a_gene_whatever_its_name(tmp_path: Path) -> None:
    FRAME.assign(PCA3=2).to_csv(tmp_path / "a.csv")
    assert "PCA3" in read(tmp_path / "a.csv").var_names


def test_no_gene_of_a_human_panel_is_taken_for_something_else(real_data: Path) -> None:
    folder = real_data / "xenium_panels_10x/reference_panels"
    manifest = pd.read_csv(folder / "manifest.csv")
    human = manifest.loc[manifest["species"].str.contains("uman"), "file"]
    assert len(human) > 5
    genes = {gene for file in human for gene in read_panel(folder / file)}
    assert len(genes) > 4000
    assert not [
        g
        for g in genes
        if _NO_GENE.fullmatch(g) or is_control(g) or g.replace("orf", "").upper() != g.replace("orf", "")
    ]


def test_genes_of_a_mouse_stay_for_the_check_of_the_species(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", "cell_id,Cd3e,Ms4a1,Epcam\na,1,2,3\n")
    same(read(path), np.array([[1, 2, 3]]), ["a"], ["Cd3e", "Ms4a1", "Epcam"])


def test_a_marker_table_of_mouse_finds_mouse_genes(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", "cell_id,Cd3e,Actb,leiden,n_genes\na,1,2,3,4\n")
    assert list(read_counts(path, {"Cd3e", "Ms4a1"}).var_names) == ["Cd3e", "Actb"]


# --- places


@pytest.mark.parametrize("names", [("x_um", "y_um"), ("x_centroid", "y_centroid")])
@pytest.mark.parametrize("kind", ["csv", "parquet", "h5ad"])
def test_places_are_found(tmp_path: Path, names: tuple[str, str], kind: str) -> None:
    where = np.random.default_rng(1).uniform(0, 400, (40, 2))
    path = tmp_path / f"a.{kind}"
    placed = FRAME.assign(**{names[0]: where[:, 0], names[1]: where[:, 1]})
    if kind == "csv":
        placed.to_csv(path)
    elif kind == "parquet":
        placed.to_parquet(path)
    else:
        written(path, obs=pd.DataFrame({names[0]: where[:, 0], names[1]: where[:, 1].astype(str)}, index=IDS))
    data = read(path)
    same(data)
    cells = cells_of(data, 1, 1)
    np.testing.assert_allclose(cells[["x_um", "y_um"]], where)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda xy: np.where(np.arange(40)[:, None] < 3, np.nan, xy), "3 of 40 are missing or no numbers"),
        (lambda xy: np.where(np.arange(40)[:, None] == 3, np.inf, xy), "1 of 40 are missing or no numbers"),
        (lambda xy: xy / 1000, "as if they were no micrometres"),
        (lambda xy: xy * 0, "the next cell is 0 um away"),
    ],
)
def test_places_that_cannot_be_used_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[np.ndarray], np.ndarray], why: str
) -> None:
    xy = change(np.random.default_rng(1).uniform(0, 400, (40, 2)))
    FRAME.assign(x_um=xy[:, 0], y_um=xy[:, 1]).to_csv(tmp_path / "a.csv")
    data = read(tmp_path / "a.csv")
    same(data)
    assert "x_um" not in cells_of(data, 1, 1)
    assert "spill-over from a cell's neighbours is not allowed for" in caplog.text
    assert why in caplog.text


def test_places_of_an_unknown_unit_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = built()
    data.obsm["spatial"] = np.random.default_rng(1).uniform(0, 400, (40, 2))
    assert "x_um" not in read(write(tmp_path / "a.h5ad", data)).obs
    assert "put them into obs as x_um and y_um" in caplog.text


def test_poor_cells_are_dropped_with_a_reason(tmp_path: Path) -> None:
    frame = FRAME.iloc[:3].copy()
    frame.iloc[:] = [[0] * 8, [9, *[0] * 7], [2] * 8]
    frame.to_csv(tmp_path / "a.csv")
    cells = cells_of(read(tmp_path / "a.csv"), 5, 2)
    assert cells["status"].tolist() == ["dropped", "dropped", "kept"]
    assert cells["reason"].tolist() == ["low_counts", "few_genes", ""]
    assert cells["cell_id"].tolist() == ["000", "001", "002"]


# --- h5ad and 10x


def built(x: object = X, var: pd.DataFrame | None = None, obs: pd.DataFrame | None = None) -> anndata.AnnData:
    values = x.astype(np.float32) if isinstance(x, np.ndarray) else x
    return anndata.AnnData(
        values,
        obs=pd.DataFrame(index=IDS) if obs is None else obs,
        var=pd.DataFrame(index=GENES) if var is None else var,
    )


def write(path: Path, data: anndata.AnnData) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write_h5ad(path)
    return path


def written(path: Path, x: object = X, **parts: pd.DataFrame) -> Path:
    return write(path, built(x, **parts))


ENSEMBL = [f"ENSG{k:011d}" for k in range(8)]
FORMS = {
    "csr_matrix": sparse.csr_matrix(X.astype(np.float32)),
    "csr_array": sparse.csr_array(X.astype(np.uint8)),
    "csc_matrix": sparse.csc_matrix(X.astype(np.int64)),
    "dense": X,
}


@pytest.mark.parametrize("form", list(FORMS))
def test_h5ad_in_every_form(tmp_path: Path, form: str) -> None:
    same(read(written(tmp_path / "a.h5ad", FORMS[form])))


def test_h5ad_with_genes_along_obs(tmp_path: Path) -> None:
    same(read(write(tmp_path / "a.h5ad", built().T)))


def test_h5ad_under_the_ending_of_10x(tmp_path: Path) -> None:
    same(read(written(tmp_path / "a.h5ad").rename(tmp_path / "a.h5")))


@pytest.mark.parametrize("column", ["feature_name", "gene_symbols", "Symbol", "whatever"])
@pytest.mark.parametrize("kind", ["category", object])
def test_symbols_in_any_column_of_var(tmp_path: Path, column: str, kind: object) -> None:
    var = pd.DataFrame({"chromosome": "1", column: pd.Series(GENES, ENSEMBL, dtype=kind)}, index=ENSEMBL)
    same(read(written(tmp_path / "a.h5ad", var=var)))


def test_features_of_one_symbol_are_added_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [*GENES[:7], "CD3E"]
    found = read(written(tmp_path / "a.h5ad", var=pd.DataFrame({"symbol": names}, index=ENSEMBL)))
    expected = X[:, :7].copy()
    expected[:, 0] += X[:, 7]
    same(found, expected, genes=GENES[:7])
    assert "1 genes have more than one row of features; they are added up" in caplog.text


def test_proteins_and_controls_are_no_genes(tmp_path: Path) -> None:
    kinds = ["Gene Expression"] * 7 + ["Antibody Capture"]
    var = pd.DataFrame({"feature_types": kinds}, index=[*GENES[:6], "NegControlProbe_1", "CD3"])
    same(read(written(tmp_path / "a.h5ad", var=var)), X[:, :6], genes=GENES[:6])


def test_counts_in_a_layer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = built(SCALED)
    data.layers["logged"] = LOGGED
    data.layers["raw_counts"] = sparse.csr_matrix(X)
    same(read(write(tmp_path / "a.h5ad", data)))
    assert "X holds no counts; they are taken from layers['raw_counts']" in caplog.text


@pytest.mark.parametrize("values", [X, LOGGED])
def test_counts_in_raw_which_may_hold_more_genes(tmp_path: Path, values: np.ndarray) -> None:
    data = built(SCALED)[:, :3].copy()
    data.raw = built(values)
    same(read(write(tmp_path / "a.h5ad", data)))


def test_no_x_but_a_layer(tmp_path: Path) -> None:
    data = anndata.AnnData(obs=pd.DataFrame(index=IDS), var=pd.DataFrame(index=GENES))
    assert "X, layers and raw are empty" in told(write(tmp_path / "a.h5ad", data))
    data.layers["counts"] = X
    same(read(write(tmp_path / "b.h5ad", data)))


def tenx(path: Path, names: list[str], kinds: list[str], group: str = "matrix") -> Path:
    matrix = sparse.csr_matrix(X)
    with h5py.File(path, "w") as stream:
        for key in ("data", "indices", "indptr"):
            stream[f"{group}/{key}"] = getattr(matrix, key)
        stream[f"{group}/shape"] = np.array(X.shape[::-1])
        stream[f"{group}/barcodes"] = np.array(IDS, dtype="S")
        for key, values in (("id", ENSEMBL), ("name", names), ("feature_type", kinds)):
            stream[f"{group}/features/{key}"] = np.array(values, dtype="S")
    return path


def test_10x(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    genes = ["Gene Expression"] * 8
    same(read(tenx(tmp_path / "a.h5", GENES, genes)))
    controls = [*GENES[:6], "NegControlProbe_1", "CD3"]
    kinds = [*genes[:6], "Negative Control Probe", "Antibody Capture"]
    same(read(tenx(tmp_path / "b.h5", controls, kinds)), X[:, :6], genes=GENES[:6])
    assert read(tenx(tmp_path / "c.h5", [*GENES[:7], "CD3E"], genes)).shape == (40, 7)


def test_10x_of_a_real_instrument(real_data: Path) -> None:
    file = real_data / "xenium_v3.0.0_mouse_ileum_tiny/cell_feature_matrix.h5"
    data = read(file)
    assert data.n_vars == 5006
    assert not [name for name in data.var_names if is_control(name)]


def test_10x_of_an_old_layout_is_told(tmp_path: Path) -> None:
    message = told(tenx(tmp_path / "a.h5", GENES, ["Gene Expression"] * 8, group="GRCh38"))
    assert message.startswith("The feature matrix cannot be read\n")
    assert "groups matrix and matrix/features" in message


# --- values


def saved(path: Path, values: np.ndarray) -> Path:
    pd.DataFrame(values, index=FRAME.index, columns=GENES).to_csv(path)
    return path


@pytest.mark.parametrize(
    "values",
    {
        "log(1 + 10,000 x share)": LOGGED,
        "float32": LOGGED.astype(np.float32),
        "written with three places": LOGGED.round(3),
        "by the median": np.log1p(SHARES * 12),
        "log2": np.log2(1 + SHARES * 1e4),
        "log10": np.log10(1 + SHARES * 1e6),
        "per million": SHARES * 1e6,
        "halves": X / 2,
    }.values(),
)
def test_counts_behind_normalised_values_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: np.ndarray
) -> None:
    same(read(saved(tmp_path / "a.csv", values)))
    assert "the counts were found back from them" in caplog.text


def test_a_cell_without_a_single_transcript_of_any_gene_is_found_back_too(tmp_path: Path) -> None:
    """Its smallest count is two or three, where the values alone would say one."""
    counts = X.copy()
    counts[0] = [2, 3, 0, 5, 0, 0, 7, 0]
    counts[1] = [3, 4, 0, 0, 8, 0, 5, 0]
    same(read(saved(tmp_path / "a.csv", np.log1p(counts / counts.sum(1, keepdims=True) * 1e4))), counts)


def test_other_fractions_stay_as_they_are_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cleaned = (X * np.random.default_rng(3).uniform(0.5, 1, X.shape)).astype(np.float32)
    found = read(written(tmp_path / "a.h5ad", cleaned))
    np.testing.assert_array_equal(found.X.toarray(), cleaned)
    assert "the values are no whole numbers; they are taken as counts as they are" in caplog.text


def test_a_table_of_zeros_has_no_cell_to_label(tmp_path: Path) -> None:
    assert (cells_of(read(saved(tmp_path / "a.csv", X * 0)), 10, 5)["reason"] == "low_counts").all()


def test_scaled_values(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", SCALED)
    assert told(path) == (
        "A table of counts holds values that are no counts\n"
        f"  where:      {path}\n"
        f"  found:      {(SCALED < 0).sum()} negative values, the first in cell "
        f"{IDS[np.argwhere(SCALED < 0)[0][0]]}, gene {GENES[np.argwhere(SCALED < 0)[0][1]]}\n"
        "  expected:   whole numbers from 0: transcripts of a gene in a cell\n"
        "  to mend it: give the counts as they were before normalisation and scaling"
    )
    assert "negative values" in told(written(tmp_path / "a.h5ad", SCALED))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_missing_values(tmp_path: Path, value: float) -> None:
    values = X.astype(float)
    values[3, 2] = value
    values[7, 0] = value
    message = told(saved(tmp_path / "a.csv", values))
    assert "2 missing values, the first in cell 003, gene EPCAM" in message
    assert "write 0 where no transcript was found" in message


# --- what cannot be used


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", "", ["The table of counts is empty", "a line of names, then rows"]),
        ("a.csv", "\n\n", ["The table of counts is empty"]),
        ("a.csv", "cell_id,CD3E\n", ["A table of counts holds no row", "2 columns and no row"]),
        ("a.csv", "cell_id,FOO,BAR\na,1,2\n", ["holds no gene of the marker table", "FOO, BAR", "such as a", "CD3E"]),
        ("a.csv", "cell_id,ENSG00000198851\na,1\n", ["holds no gene", "by their symbols: these are Ensembl ids"]),
        ("a.csv", "CD3E,DCN\n1,2\n2,3\n", ["has no ids of its cells", "'CD3E', a gene", "first column 'cell_id'"]),
        ("a.csv", "GAPDH,CD3E\n1,2\n1,3\n", ["has no ids of its cells", "the first column is 'GAPDH'"]),
        ("a.csv", "x_um,y_um,CD3E\n1.5,2,3\n", ["has no ids of its cells", "the first column is 'x_um'"]),
        ("a.csv", "cell_id,CD3E\na,1\na,2\n", ["A cell stands twice", "1 doubled, such as a", "name of the sample"]),
        ("a.csv", "gene,a,b\nCD3E,1,2\nCD3E,1,2\nDCN,0,1\n", ["A gene stands twice", "such as CD3E", "add them up"]),
        ("a.csv", "cell_id,CD3E,CD3E\na,1,2\n", ["A column stands twice", "1 doubled, such as 'CD3E'"]),
        ("a.csv", "gene,a,a\nCD3E,1,2\n", ["A column stands twice", "such as 'a'"]),
        ("a.csv", "cell_id,CD3E\n,1\nb,2\n", ["A cell has no name", "1 without"]),
        ("a.csv", "cell_id,CD3E,DCN\na,1,x\nb,1,2\n", ["holds text where counts belong", "a.csv, column DCN", "'x'"]),
        ("a.csv", "cell_id,CD3E,DCN\na,1,2\nb,1,2,3\n", ["cannot be read", "Expected 3 fields in line 3, saw 4"]),
        ("a.csv", "cell_id,CD3E,DCN\na,1,2,3,4\n", ["more values than there are columns", "5 values", "line 2"]),
        ("a.csv", "cell_id,CD3E,DCN\na,1,2\nb,1\n", ["1 missing values, the first in cell b, gene DCN"]),
        ("a.csv", "cell_id,gene,count\na,CD3E,1\na,DCN,2\nb,CD3E,1\nb,DCN,2\nc,CD3E,1\n",
         ["more than one row a gene", "5 rows of 2 genes", "pivot_table"]),
        ("a.csv", "<!DOCTYPE html>\n<html></html>\n", ["The table of counts is a web page", "download the file"]),
        ("a.csv", "cell_id,CD3E\nä,1\n".encode("latin-1"), ["cannot be read", "text in UTF-8"]),
        ("a.csv", "cell_id,CD3E\na,1\n".encode("utf-16"), ["cannot be read", "text in UTF-8"]),
        ("a.csv", bytes(range(256)), ["cannot be read"]),
        ("a.csv.gz", b"\x1f\x8bno gzip", ["cannot be read", "download the file again"]),
        ("a.csv.gz", gzip.compress(FRAME.to_csv().encode())[:200], ["cannot be read", "Compressed file ended"]),
        ("a.parquet", b"no", ["cannot be read"]),
        ("a.h5ad", b"no", ["cannot be read"]),
        ("a.h5", b"no", ["cannot be read"]),
        ("a.xlsx", b"no", ["kind of a table of counts is not known", "the ending .xlsx", ".h5ad, .h5, .csv", ".gz"]),
        ("a.csv.zip", b"no", ["kind of a table of counts is not known", "the ending .zip"]),
        ("counts", b"no", ["kind of a table of counts is not known", "no ending"]),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(tmp_path: Path, name: str, content: str | bytes, parts: list[str]) -> None:
    path = text(tmp_path / name, content)
    message = told(path)
    assert f"where:      {path}" in message
    for part in parts:
        assert part in message


def test_h5ad_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    ensembl = written(tmp_path / "a.h5ad", var=pd.DataFrame(index=ENSEMBL))
    assert "these are Ensembl ids" in told(ensembl)
    assert "holds no cell" in told(write(tmp_path / "b.h5ad", built(FORMS["csr_matrix"])[:0].copy()))
    assert "holds no gene" in told(write(tmp_path / "c.h5ad", built(FORMS["csr_matrix"])[:, :0].copy()))
    assert "39 doubled, such as a" in told(written(tmp_path / "d.h5ad", obs=pd.DataFrame(index=["a"] * 40)))
    whole = written(tmp_path / "e.h5ad").read_bytes()
    assert "cannot be read" in told(text(tmp_path / "f.h5ad", whole[: len(whole) // 2]))
    newer = written(tmp_path / "g.h5ad")
    with h5py.File(newer, "r+") as stream:
        stream["X"].attrs["encoding-type"] = "of-tomorrow"
    assert "cannot be read" in told(newer)
    with h5py.File(tmp_path / "h.h5ad", "w") as stream:
        stream["X"] = X
    assert "cannot be read" in told(tmp_path / "h.h5ad")


def test_a_folder_and_nothing(tmp_path: Path) -> None:
    assert told(tmp_path / "none.csv").startswith("The table of counts is missing\n")
    message = told(tmp_path)
    assert message.startswith("The table of counts is a folder\n")
    assert "give one of the files in it" in message
    for name, part in (
        ("experiment.xenium", "give --cells"),
        ("matrix.mtx.gz", "read_10x_mtx"),
        (".zgroup", "read_zarr"),
    ):
        (tmp_path / name[1:4]).mkdir()
        (tmp_path / name[1:4] / name).touch()
        assert part in told(tmp_path / name[1:4])
