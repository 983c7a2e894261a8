"""Which files of a Xenium output the study needs, under the names of every version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nuclass.core.bundle_source import EXPERIMENT, NEEDED
from nuclass.core.errors import UserError

# Each entry: names of which the first found is taken, and whether the study cannot do without it.
MEMBERS: tuple[tuple[tuple[str, ...], bool], ...] = (
    *((names, True) for names in NEEDED),
    (("cell_boundaries.parquet", "cell_boundaries.csv.gz", "cell_boundaries.csv"), False),
    (("gene_panel.json",), False),
    (("metrics_summary.csv",), False),
)
# DAPI in focus, where experiment.xenium does not name it: from 4.0 on, from 2.0 on, before.
_FOCUS = (
    "morphology_focus/ch0000_*.ome.tif",
    "morphology_focus/*dapi*.ome.tif",
    "morphology_focus/morphology_focus_0000.ome.tif",
    "morphology_focus.ome.tif",
    "morphology_mip.ome.tif",
)


@dataclass(frozen=True)
class Choice:
    """Files of an output, by name relative to experiment.xenium.

    Attributes
    ----------
    names
        The files to take, experiment.xenium first, the DAPI image last.
    image
        The DAPI image in focus, None where it is not taken.
    missing
        Names of which one is needed and none is there, in words.
    absent
        Names the study can do without and of which none is there.
    """

    names: tuple[str, ...]
    image: str | None
    missing: tuple[str, ...]
    absent: tuple[str, ...]


def focus_image(names: Iterable[str], experiment: Mapping[str, Any]) -> str | None:
    """Return the DAPI image in focus among ``names``: the one experiment.xenium names, or a known name."""
    available = sorted(names)
    images = experiment.get("images")
    stated = images if isinstance(images, Mapping) else {}
    for kind in ("focus", "mip"):
        named = str(stated.get(f"morphology_{kind}_filepath") or "").removeprefix("./")
        if named in available:
            return named
    found = (name for pattern in _FOCUS for name in available if fnmatchcase(name, pattern))
    return next(found, None)


def choose(names: Iterable[str], experiment: Mapping[str, Any], image: bool) -> Choice:
    """Choose what is taken of an output.

    Parameters
    ----------
    names
        What lies in it, relative to experiment.xenium.
    experiment
        The content of experiment.xenium.
    image
        Whether the DAPI image in focus is needed; it can have gigabytes.
    """
    available = set(names)
    taken, missing = [EXPERIMENT], []
    absent: list[str] = []
    if EXPERIMENT not in available:
        missing.append(EXPERIMENT)
    for group, needed in MEMBERS:
        found = next((name for name in group if name in available), None)
        if found is not None:
            taken.append(found)
        elif needed:
            missing.append(" or ".join(group))
        else:
            absent.extend(group)
    focus = focus_image(available, experiment) if image else None
    if focus is not None:
        taken.append(focus)
    elif image:
        missing.append("the DAPI image in focus (morphology_focus/...ome.tif or morphology_focus.ome.tif)")
    return Choice(tuple(taken), focus, tuple(missing), tuple(absent))


def require(choice: Choice, where: object) -> None:
    """Raise a :class:`UserError` if something needed is missing."""
    if choice.missing:
        raise UserError(
            "A file of the Xenium bundle is missing",
            where=where,
            found=f"no {'; no '.join(choice.missing)}",
            expected="a complete output bundle",
            fix="copy the file from the instrument's or xeniumranger's output",
        )


def names_in(folder: Path) -> list[str]:
    """Return the files of a slide's folder that may be members, relative to it."""
    places: Sequence[Path] = (folder, folder / "morphology_focus")
    return [
        file.relative_to(folder).as_posix()
        for place in places
        if place.is_dir()
        for file in place.iterdir()
        if file.is_file() and not file.name.startswith(".")
    ]
