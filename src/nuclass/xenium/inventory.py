"""The list of what lies in one slide's folder, for every source of slides alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nuclass.core.bundle_source import EXPERIMENT
from nuclass.core.files import read_json, sha256, write_json
from nuclass.xenium.members import focus_image

INVENTORY = "bundle.json"
_UNFINISHED = (".part", ".part.json", ".wrong")


def alignment_name(slide: str) -> str:
    """Return the study's name of an alignment file."""
    return f"{slide}_he_imagealignment.csv"


def given_name(slide: str) -> str:
    """Return the study's name of the labels that were published with a slide."""
    return f"{slide}_cell_groups.csv"


def write_inventory(
    folder: str | Path,
    slide: str,
    source: str,
    xoa_version: str,
    he: str,
    files: Sequence[str] | None = None,
    *,
    alignment: str | None = "",
    alignment_source: str | None = None,
    hashes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write bundle.json: what lies in a slide's folder, with sizes in bytes and SHA-256.

    Parameters
    ----------
    folder
        The slide's folder.
    slide, source
        The slide's name; ``synthetic``, ``local`` or the name of a dataset.
    xoa_version
        The version of the analysis that wrote the bundle.
    he
        The name of the H&E image in the folder.
    files
        The names to list; by default every file in the folder, without hidden and unfinished ones.
    alignment
        The name of the alignment in the folder, None where there is none; by default the study's.
    alignment_source
        The name of the file the alignment came from, ``grid``, or ``matrix in the slide sheet``; by default the
        alignment's own name.
    hashes
        SHA-256 that are known, by name.

    Returns
    -------
    What was written: ``slide source xoa_version he alignment alignment_source image given files``. ``image`` is
    the DAPI image in focus and ``given`` the published labels, None where they are not among the files.
    """
    out = Path(folder)
    if files is None:
        found = (p for p in out.rglob("*") if p.is_file() and not p.name.startswith("."))
        files = [name for p in found if (name := p.relative_to(out).as_posix()) != INVENTORY]
        files = [name for name in files if not name.endswith(_UNFINISHED)]
    if alignment == "":
        alignment = alignment_name(slide)
    known = hashes or {}
    experiment = read_json(out / EXPERIMENT) if EXPERIMENT in files else {}
    inventory: dict[str, Any] = {
        "slide": slide,
        "source": source,
        "xoa_version": xoa_version,
        "he": he,
        "alignment": alignment,
        "alignment_source": alignment_source or alignment,
        "image": focus_image(files, experiment),
        "given": given_name(slide) if given_name(slide) in files else None,
        "files": {
            name: {"bytes": (out / name).stat().st_size, "sha256": known.get(name) or sha256(out / name)}
            for name in sorted(files)
        },
    }
    write_json(out / INVENTORY, inventory)
    return inventory
