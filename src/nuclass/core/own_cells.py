"""What a user says of the positions of cells: what they are, their frame, and the options that go with them."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from nuclass.core.bundle_source import EXPERIMENT, is_web_page
from nuclass.core.errors import UserError, closest
from nuclass.core.schema import raise_faults

Kind = Literal["geojson", "csv", "parquet", "bundle", "detect"]
# Instead of a file: find the nuclei on the image.
DETECT: Literal["detect"] = "detect"
CLASSICAL, CELLPOSE = "classical", "cellpose"
METHODS = (CLASSICAL, CELLPOSE)
TABLES = ("csv", "parquet")
_FILES = ("geojson", *TABLES)

HE, UM, PX, MORPH, XENIUM_UM = "he", "um", "px", "morph", "xenium_um"
NAMES = (HE, UM, PX, MORPH, XENIUM_UM)
# The size of a morphology pixel on every known instrument, um.
MORPH_UM = 0.2125
FRAMES_TOLD = (
    "he (px of the H&E at full resolution), um (micrometres from the image's top left corner), px@0.25 (px of 0.25 um, "
    "or of another size), morph (morphology px) or xenium_um (micrometres of a Xenium run); the last two need "
    "--alignment"
)
# Corners that positions on a slide of which only a part was scanned count from.
CROP, IMAGE = "crop", "image"
ORIGINS = (CROP, IMAGE)
LARGEST_MPP = 4.0
"""Micrometres per px above which an image shows no cells; a magnification given by mistake is above it too."""
MISSPELT = 0.8
"""How near a name must be to an organ of the model to count as misspelt: skin is no kidney, ear no heart."""

_HEAD = 1 << 12
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_KINDS_TOLD = (
    "GeoJSON of QuPath, CellViT or StarDist; a CSV, TSV or Parquet table; the folder or outs.zip of a Xenium run; "
    f"or the word {DETECT}"
)
_FOR = {
    "alignment": "a Xenium run, or a file in its frame: --frame morph or --frame xenium_um",
    "columns": "a table: CSV, TSV or Parquet",
    "weights": f"--cells {DETECT}:{CELLPOSE}",
    "origin": "a GeoJSON or a table in px or um of the H&E: --frame he, um or px@0.25",
}
_WORDS = {"geojson": "a GeoJSON", "csv": "a table", "parquet": "a table", "bundle": "a Xenium run"}


@dataclass(frozen=True)
class Given:
    """A frame as the user stated it: its name, and um per unit where the name alone does not say it."""

    name: str
    mpp: float | None = None

    def __str__(self) -> str:
        return self.name if self.mpp is None else f"{self.name}@{self.mpp:g}"

    @property
    def needs_alignment(self) -> bool:
        """Whether only an alignment leads from it to the H&E."""
        return self.name in (MORPH, XENIUM_UM)

    def scale(self, mpp_he: float) -> float:
        """Return H&E px per unit, for frames that share the H&E's corner."""
        if self.name == HE:
            return 1.0
        if self.name == UM:
            return 1 / (self.mpp or mpp_he)
        assert self.name == PX
        assert self.mpp is not None
        return self.mpp / mpp_he

    def unit_um(self, mpp_he: float) -> float:
        """Return about how many um one unit is, to judge sizes."""
        return {MORPH: MORPH_UM, XENIUM_UM: 1.0}.get(self.name) or self.scale(mpp_he) * mpp_he


def parse_frame(text: str | None, mpp: float | None = None) -> Given | None:
    """Read what the user says of a frame: ``he``, ``um``, ``px@0.25``, ``morph``, ``xenium_um``; None stays None.

    Parameters
    ----------
    text
        The words. ``px`` needs the size of its px, behind ``@`` or as ``mpp``. ``um@0.2528`` are micrometres that were
        made from px with another size than the H&E has by now.
    mpp
        Micrometres per px, where ``text`` has no ``@``.

    Raises
    ------
    UserError
        There is no such frame, or the size of a px is missing or no positive number.
    """
    if text is None:
        return None
    name, mark, size = text.strip().lower().partition("@")
    name = name.strip().replace("µm", "um").replace("μm", "um")
    if name not in NAMES:
        raise UserError(
            "The frame of the positions is not known",
            where="--frame",
            found=repr(text),
            expected=FRAMES_TOLD,
            fix=f"write one of these.{closest(name, list(NAMES))}",
        )
    if mark:
        try:
            mpp = float(size)
        except ValueError:
            mpp = math.nan
    if mpp is not None and not 0.01 <= mpp <= 100:
        raise UserError(
            "The size of a px is no size",
            where="--frame",
            found=repr(text) if mark else repr(mpp),
            expected="um per px, 0.01 to 100, such as px@0.25",
        )
    if mark and name not in (PX, UM):
        raise UserError("A frame has a size it cannot have", where="--frame", found=repr(text), expected=FRAMES_TOLD)
    if name == PX and mpp is None:
        raise UserError(
            "The size of the positions' px is not stated",
            where="--frame",
            found=repr(text),
            expected="um per px behind @",
            fix="write px@0.25 if the segmentation ran at 0.25 um/px; write he for px of the image's full resolution",
        )
    return Given(name, mpp if name in (PX, UM) else None)


def parse_origin(text: str | None) -> None:
    """Check the corner that positions count from: ``crop``, ``image``, or None where it is not stated.

    Raises
    ------
    UserError
        There is no such corner.
    """
    if text is not None and text not in ORIGINS:
        raise UserError(
            "The origin of the positions is not known",
            where="--origin",
            found=repr(text),
            expected=" or ".join(ORIGINS),
            fix=f"write one of these.{closest(text, list(ORIGINS))}",
        )


def finds_nuclei(cells: str | Path) -> bool:
    """Whether the nuclei are to be found on the image, and no file names them."""
    return str(cells).partition(":")[0] == DETECT


def method_of(cells: str | Path) -> str:
    """Return how nuclei are found, of ``detect``, ``detect:classical`` or ``detect:cellpose``.

    Raises
    ------
    UserError
        There is no such way.
    """
    method = str(cells).partition(":")[2] or CLASSICAL
    if method not in METHODS:
        raise UserError(
            "There is no such way to detect nuclei",
            where="--cells",
            found=f"{DETECT}:{method}",
            expected=" or ".join(f"{DETECT}:{one}" for one in METHODS),
        )
    return method


def kind_of(cells: str | Path) -> Kind:
    """Return what positions are: the word ``detect``, or a file by its content.

    Raises
    ------
    UserError
        The file is missing or of no known kind, or there is no such way to detect.
    """
    if finds_nuclei(cells):
        method_of(cells)
        return DETECT
    file = Path(cells)
    if file.is_dir() or file.name == EXPERIMENT:
        return "bundle"
    head = head_of(file)
    if head.startswith(b"PK"):
        return "bundle"
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.removeprefix(_BOM).lstrip()
    if start.startswith((b"{", b"[")):
        return "geojson"
    if is_web_page(head):
        found, fix = "a web page or XML", "export GeoJSON or a table; a download may have answered with a page"
    elif b"\0" in head and not head.startswith(_WIDE):
        found, fix = f"a file that begins with {head[:8]!r}", "export GeoJSON or a table"
    elif not start:
        found, fix = "an empty file", "export it again"
    else:
        return "csv"
    raise UserError("The file of positions is of no known kind", where=file, found=found, expected=_KINDS_TOLD, fix=fix)


def use_faults(cells: str | Path, kind: Kind, given: Given | None, options: Mapping[str, Any]) -> list[UserError]:
    """Return a fault for the frame and for each option that has no use with positions of this kind.

    Parameters
    ----------
    cells
        As the user gave it.
    given
        The frame; None where none is stated. Of a table its columns may say it, and what depends on it is not judged.
    options
        ``alignment``, ``columns``, ``weights``, ``origin``; None where they are not stated.
    """
    faults = []
    if given is not None and kind == DETECT:
        faults.append(
            UserError(
                "Detected nuclei need no frame", where="--frame", found=str(given), expected=f"no --frame with {DETECT}"
            )
        )
    if given is not None and kind == "bundle" and given.name != XENIUM_UM:
        faults.append(
            UserError(
                "A Xenium run has a frame of its own",
                where="--frame",
                found=str(given),
                expected="no --frame for a run",
            )
        )
    unknown = kind in TABLES and given is None
    aligned = given is not None and given.needs_alignment
    useful = {
        "alignment": kind == "bundle" or (kind in _FILES and (aligned or unknown)),
        "columns": kind in TABLES,
        "weights": kind == DETECT and method_of(cells) == CELLPOSE,
        "origin": kind in _FILES and not aligned,
    }
    what = _WORDS.get(kind, f"--cells {cells}") + (f" in the frame {given}" if given and kind in _FILES else "")
    faults += [
        UserError(
            f"The option --{name} has no use with these positions",
            where=f"--cells {cells}",
            found=f"--{name} {options[name]} with {what}",
            expected=f"--{name} with {_FOR[name]}",
            fix=f"leave --{name} out",
        )
        for name, used in useful.items()
        if options.get(name) is not None and not used
    ]
    return faults


def check_reading(
    cells: str | Path, frame: str | None, options: Mapping[str, Any], mpp: float | None = None
) -> tuple[Kind, Given | None]:
    """Return what the positions are and in which frame they are stated to be, before anything is read of them.

    Parameters
    ----------
    cells, options
        See :func:`use_faults`.
    frame, mpp
        See :func:`parse_frame`.

    Raises
    ------
    UserError
        The file is missing or of no known kind, the frame or the origin is not known, or an option has no use.
    """
    given = parse_frame(frame, mpp)
    parse_origin(options.get("origin"))
    kind = kind_of(cells)
    raise_faults(use_faults(cells, kind, given, options), "The positions cannot be read as it is said")
    return kind, given


def no_alignment(where: object) -> UserError:
    """Return the fault that positions of a Xenium run lack an alignment."""
    return UserError(
        "Positions of a Xenium run need the alignment of the H&E",
        where=where,
        found="no alignment",
        expected="the file that maps H&E px to morphology px, such as *_he_imagealignment.csv",
        fix="add --alignment FILE, or --alignment grid if the H&E lies on the morphology pixels",
    )


@contextmanager
def opened(file: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file for reading: the file itself, and its content, unpacked where it is gzip.

    Raises
    ------
    UserError
        It cannot be opened or read, or the packed content is damaged.
    """
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            if not packed:
                yield raw, raw
                return
            with gzip.GzipFile(fileobj=raw) as content:
                yield raw, content  # type: ignore[misc]
    except FileNotFoundError as error:
        raise UserError("The file of positions is missing", where=file, fix="check the path of --cells") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            "A packed file of positions is damaged",
            where=file,
            found=str(error) or type(error).__name__,
            expected="a whole .gz",
            fix="pack or copy it again; it may be cut off",
        ) from error
    except OSError as error:
        raise UserError("The file of positions cannot be read", where=file, found=str(error)) from error


def head_of(file: Path) -> bytes:
    """Return the first bytes of a file's content, unpacked where it is gzip."""
    with opened(file) as (_, content):
        return content.read(_HEAD)
