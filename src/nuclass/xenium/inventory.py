"""The list of what lies in one slide's folder, for every source of slides alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nuclass.core.files import sha256, write_json

INVENTORY = "bundle.json"


def alignment_name(slide: str) -> str:
    """Return the study's name of an alignment file."""
    return f"{slide}_he_imagealignment.csv"


def write_inventory(
    folder: str | Path, slide: str, source: str, xoa_version: str, he: str, files: Sequence[str] | None = None
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
    """
    out = Path(folder)
    if files is None:
        found = (p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix != ".part")
        files = [name for p in found if (name := p.relative_to(out).as_posix()) != INVENTORY]
    inventory = {
        "slide": slide,
        "source": source,
        "xoa_version": xoa_version,
        "he": he,
        "alignment": alignment_name(slide),
        "files": {name: {"bytes": (out / name).stat().st_size, "sha256": sha256(out / name)} for name in sorted(files)},
    }
    write_json(out / INVENTORY, inventory)
    return inventory
