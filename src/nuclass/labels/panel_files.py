"""The genes of a panel, from whatever file tells them: a panel table, gene_panel.json, a bundle, a list of names."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.files import read_json

PANEL_JSON = "gene_panel.json"
MATRIX = "cell_feature_matrix.h5"
GENE_COLUMNS = ("gene", "genes", "gene name", "gene symbol", "symbol", "feature name")
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?$")


def read_panel(path: str | Path) -> list[str]:
    """Return the genes of a panel, each once, in the order of the file.

    Parameters
    ----------
    path
        A table with a column of gene names (comma or tab; its header may be ``gene``, ``Genes``, ``gene_name`` ...),
        a ``gene_panel.json``, the folder of a bundle, a matrix (.h5, .h5ad), or a text with one gene a line.

    Raises
    ------
    UserError
        Where there is no such file, no column of genes, or where the genes are Ensembl ids.
    """
    file = Path(path)
    if file.is_dir():
        return _of_bundle(file)
    if not file.is_file():
        raise UserError(
            "The panel is missing",
            where=file,
            expected="a panel table, gene_panel.json, the folder of a bundle, or a list of genes",
            fix="check the path",
        )
    readers = {".json": _of_json, ".h5": _of_matrix, ".h5ad": _of_anndata}
    return _checked(readers.get(file.suffix, _of_table)(file), file)


def _of_bundle(folder: Path) -> list[str]:
    if (folder / PANEL_JSON).is_file():
        return _checked(_of_json(folder / PANEL_JSON), folder / PANEL_JSON)
    if (folder / MATRIX).is_file():
        return _checked(_of_matrix(folder / MATRIX), folder / MATRIX)
    raise UserError(
        "The folder is no bundle",
        where=folder,
        expected=f"{PANEL_JSON} or {MATRIX} in it",
        fix="give the folder that holds experiment.xenium",
    )


def _of_matrix(file: Path) -> list[str]:
    from nuclass.xenium.matrix import GENE_EXPRESSION, feature_types

    types = feature_types(file)
    return [str(name) for name in types.index[types == GENE_EXPRESSION]]


def _of_anndata(file: Path) -> list[str]:
    import anndata

    try:
        return [str(name) for name in anndata.read_h5ad(file, backed="r").var_names]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            "The matrix cannot be read", where=file, found=str(error), expected="an .h5ad file of anndata"
        ) from error


def _of_json(file: Path) -> list[str]:
    try:
        targets: list[Any] = read_json(file)["payload"]["targets"]
        return [str(t["type"]["data"]["name"]) for t in targets if t["type"]["descriptor"] == "gene"]
    except (KeyError, TypeError) as error:
        raise UserError(
            "The gene panel has an unknown layout",
            where=file,
            found=f"no {error}" if isinstance(error, KeyError) else str(error),
            expected="payload, targets, type, descriptor, data, name",
            fix="take the gene_panel.json of a bundle, or a list of genes",
        ) from error


def _of_table(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(
            "The panel is not text", where=file, found=str(error), expected="a table or a list of genes in UTF-8"
        ) from error
    if not lines:
        return []
    rows = list(csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ","))
    header = [_plain(name) for name in rows[0]]
    column = next((header.index(name) for name in GENE_COLUMNS if name in header), None)
    if column is not None:
        return [row[column].strip() for row in rows[1:] if len(row) > column]
    if all(len(row) == 1 for row in rows):
        return [row[0].strip() for row in rows]
    raise UserError(
        "The panel has no column of genes",
        where=file,
        found="columns " + ", ".join(rows[0][:8]),
        expected="one of " + ", ".join(GENE_COLUMNS) + " (in any case, with blanks or underscores)",
        fix="name the column of gene names 'gene'",
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", name.strip().casefold())


def _checked(genes: list[str], file: Path) -> list[str]:
    names = list(dict.fromkeys(gene for gene in genes if gene))
    if not names:
        raise UserError("The panel holds no gene", where=file, expected="at least one gene name")
    ids = [name for name in names if _ENSEMBL.match(name)]
    if len(ids) > len(names) / 2:
        raise UserError(
            "The panel gives Ensembl ids where gene names are needed",
            where=file,
            found=f"{len(ids)} of {len(names)}, such as {ids[0]}",
            expected="gene names, such as CD3E",
            fix="give the column of names the header 'gene'",
        )
    return names
