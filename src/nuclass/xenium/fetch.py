"""Bring one slide's bundle, H&E image and alignment into one folder, under the study's names."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError, closest
from nuclass.core.files import read_json
from nuclass.core.log import get_logger
from nuclass.xenium.alignment import read_alignment
from nuclass.xenium.download import download, extract, remote_zip
from nuclass.xenium.inventory import alignment_name, write_inventory
from nuclass.xenium.reader import EXPERIMENT, read_bundle

_log = get_logger(__name__)

# Each entry: names of which the first found is taken, and whether the study cannot do without it.
MEMBERS: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("cells.parquet", "cells.csv.gz"), True),
    (("cell_feature_matrix.h5",), True),
    (("nucleus_boundaries.parquet", "nucleus_boundaries.csv.gz"), True),
    (("cell_boundaries.parquet", "cell_boundaries.csv.gz"), False),
    (("gene_panel.json",), False),
    (("metrics_summary.csv",), False),
)
_FOCUS = ("morphology_focus/morphology_focus_0000.ome.tif", "morphology_focus/ch0000_dapi.ome.tif")
REGISTRY_COLUMNS = (
    *("dataset", "role", "organ", "xoa_version", "url_outs", "url_he", "url_alignment"),
    *("status", "sha256", "size", "evidence"),
)
_IDENTITY_HINT = (
    "give the path in the slide sheet; for an H&E image that already lies on the morphology grid, "
    "a file with the lines 1,0,0 and 0,1,0 and 0,0,1"
)


def read_registry(file: str | Path) -> pd.DataFrame:
    """Read the table of public datasets, indexed by ``dataset``; all columns are text, empty where unknown."""
    path = Path(file)
    if not path.is_file():
        raise UserError("The table of datasets is missing", where=path, fix="restore it from the repository")
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, comment="#")
    if missing := [name for name in REGISTRY_COLUMNS if name not in table]:
        raise UserError("The table of datasets lacks columns", where=path, expected=", ".join(missing))
    if repeated := sorted(set(table["dataset"][table["dataset"].duplicated()])):
        raise UserError("A dataset stands twice", where=path, found=", ".join(repeated), expected="one row each")
    return table.set_index("dataset", drop=False)


def dataset_row(registry: pd.DataFrame, name: str, file: str | Path = "resources/datasets.tsv") -> dict[str, str]:
    """Return one dataset's row; an unknown name is a :class:`UserError` that proposes the nearest."""
    if name not in registry.index:
        raise UserError(
            f"There is no dataset '{name}'.{closest(name, list(registry.index))}",
            where=file,
            expected=f"one of {len(registry)} names in its column 'dataset'",
            fix="mend the column 'bundle' of the slide sheet",
        )
    return {str(key): str(value) for key, value in registry.loc[name].items()}


def image_name(slide: str, source: str) -> str:
    """Return the study's name of an H&E image: ``{slide}_he_image.ome.tif``, or with the source's own kind."""
    lower = source.lower()
    known = lower.endswith((".tif", ".tiff", ".btf"))
    return f"{slide}_he_image{'.ome.tif' if known else Path(source).suffix}"


def fetch_local(
    bundle_folder: str | Path, he: str | Path, alignment: str | Path, out_folder: str | Path, slide: str
) -> dict[str, Any]:
    """Link the needed members of a local bundle, its H&E and its alignment into ``out_folder``.

    The alignment and the pixel size are read once, so that a broken input is told here. Existing
    links are renewed.

    Returns
    -------
    The inventory, also written as bundle.json.
    """
    bundle = read_bundle(bundle_folder)
    _ = bundle.pixel_size
    for label, file in (("H&E image", he), ("alignment", alignment)):
        if not str(file) or not Path(file).is_file():
            fix = _IDENTITY_HINT if label == "alignment" else "give the path in the slide sheet"
            raise UserError(f"The {label} of slide '{slide}' is missing", where=str(file) or "no path given", fix=fix)
    read_alignment(alignment)
    folder, out = bundle.folder, Path(out_folder)
    members = _choose([p.relative_to(folder).as_posix() for p in folder.rglob("*")], bundle.experiment, str(folder))
    for name in members:
        _link(folder / name, out / name)
    he_name = image_name(slide, Path(he).name)
    _link(Path(he), out / he_name)
    _link(Path(alignment), out / alignment_name(slide))
    return write_inventory(out, slide, "local", bundle.version, he_name, [*members, he_name, alignment_name(slide)])


def fetch_remote(
    row: Mapping[str, str], out_folder: str | Path, slide: str, *, attempts: int = 5, pause_s: float = 2.0
) -> dict[str, Any]:
    """Download what is needed of a public dataset; a second call goes on where the first stopped.

    Parameters
    ----------
    row
        ``dataset url_outs url_he url_alignment`` and optionally ``sha256`` (``he=...; alignment=...``),
        a row of the table of datasets.
    out_folder
        Where the files go; made if needed.
    slide
        The slide's name, which the H&E image and the alignment get.
    attempts, pause_s
        How often a broken transfer is tried, and the first pause in seconds (doubled each time).

    Returns
    -------
    The inventory, also written as bundle.json.
    """
    for key in ("url_outs", "url_he", "url_alignment"):
        if not row.get(key):
            raise UserError(
                f"No address is known for '{key}' of dataset '{row.get('dataset', '')}'",
                where="resources/datasets.tsv",
                fix="fill it in, or download the files yourself and set source to 'local' in the slide sheet",
            )
    out = Path(out_folder)
    patience = {"attempts": attempts, "pause_s": pause_s}
    # The small file first: a wrong alignment should not cost a download of gigabytes.
    alignment = download(row["url_alignment"], out / alignment_name(slide), **patience)  # type: ignore[arg-type]
    read_alignment(alignment)
    with remote_zip(row["url_outs"], out / "outs.zip", **patience) as archive:  # type: ignore[arg-type]
        members = _extract_members(archive, out, row["url_outs"], patience)
    he_name = image_name(slide, row["url_he"].rpartition("/")[2])
    he = download(row["url_he"], out / he_name, **patience)  # type: ignore[arg-type]
    bundle = read_bundle(out)
    _ = bundle.pixel_size
    (out / "outs.zip").unlink(missing_ok=True)
    files = [*members, he_name, alignment.name]
    inventory = write_inventory(out, slide, row.get("dataset", "dataset"), bundle.version, he_name, files)
    _compare(row.get("sha256", ""), {"he": he.name, "alignment": alignment.name}, inventory)
    return inventory


def _extract_members(archive: zipfile.ZipFile, out: Path, url: str, patience: Mapping[str, Any]) -> list[str]:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    anchors = sorted((n for n in names if n.rpartition("/")[2] == EXPERIMENT), key=len)
    if not anchors:
        raise UserError("The zip holds no Xenium bundle", where=url, found=f"{len(names)} files", expected=EXPERIMENT)
    prefix = anchors[0][: -len(EXPERIMENT)]
    extract(archive, anchors[0], out / EXPERIMENT, **patience)
    inside = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    members = _choose(inside, read_json(out / EXPERIMENT), url)
    for name in members:
        extract(archive, prefix + name, out / name, **patience)
    return members


def _choose(available: Sequence[str], experiment: Mapping[str, Any], where: str) -> list[str]:
    """Return the members to take, experiment.xenium first; a missing one is a :class:`UserError`."""
    present = set(available)
    images = experiment.get("images") or {}
    stated = [images.get(f"morphology_{kind}_filepath") for kind in ("focus", "mip")]
    focus = tuple(name for name in (*stated, *_FOCUS) if name)
    chosen = [EXPERIMENT]
    for names, needed in (*MEMBERS, (focus, True)):
        found = next((name for name in names if name in present), None)
        if found is not None:
            chosen.append(found)
        elif needed:
            raise UserError(
                "A file of the Xenium bundle is missing",
                where=where,
                found=f"no {' or '.join(names)}",
                expected="a complete output bundle",
                fix="copy the file from the instrument's or xeniumranger's output",
            )
    return chosen


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a link to ``source``, replacing what was there in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(source.resolve())
    temporary.replace(target)


def _compare(recorded: str, names: Mapping[str, str], inventory: Mapping[str, Any]) -> None:
    """Warn where a checksum differs from the recorded one; third parties recorded them, some from mirrors."""
    for part in recorded.replace(";", " ").split():
        key, _, value = part.partition("=")
        if key in names and value != inventory["files"][names[key]]["sha256"]:
            actual = inventory["files"][names[key]]["sha256"]
            _log.warning("%s: SHA-256 is %s, recorded was %s", names[key], actual, value)
