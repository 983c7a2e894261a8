"""Open HDF5 files for reading, and find the files that virtual datasets rest on."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError

CACHE_BYTES = 32_000_000


def open_h5(path: Path) -> Any:
    """Open an HDF5 file for reading.

    Raises
    ------
    UserError
        Of its own each: the file is missing, open for writing elsewhere, cut off, no HDF5, or cannot be read.
    """
    import h5py

    try:
        return h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)
    except FileNotFoundError as error:
        raise UserError("A file of windows is missing", where=path, fix="check the path, or make the file") from error
    except IsADirectoryError as error:
        raise UserError("A file of windows is a folder", where=path, expected="an HDF5 file") from error
    except PermissionError as error:
        raise UserError("A file of windows may not be read", where=path, fix="ask for the right to read it") from error
    except OSError as error:
        text = short(error)
        if "already open for" in text or "unable to lock" in text or error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            raise UserError(
                "A file of windows is open for writing",
                where=path,
                found=text,
                expected="a file that is finished",
                fix="wait for the program that writes it; if it was killed, write the file again",
            ) from error
        if "truncated file" in text:
            raise UserError(
                "A file of windows is cut off",
                where=path,
                found=text,
                fix="copy the file again; if the program that wrote it was killed, write it again",
            ) from error
        if "signature not found" in text:
            raise UserError("A file of windows is not HDF5", where=path, found=text, fix="check the path") from error
        raise UserError(
            "A file of windows cannot be read", where=path, found=text, fix="copy the file again, or write it again"
        ) from error


def find_sources(path: Path, images: Any) -> list[Path]:
    """Return the files that the windows of a virtual dataset lie in, each once.

    Parameters
    ----------
    path
        The file of the dataset.
    images
        The dataset, open.

    Raises
    ------
    UserError
        A source is gone or holds something else: HDF5 would give white windows without a word.
    """
    reach: dict[tuple[str, str], tuple[int, ...]] = {}
    plist = images.id.get_create_plist()
    for i in range(plist.get_virtual_count()):
        place = plist.get_virtual_filename(i), plist.get_virtual_dsetname(i)
        # HDF5 does not keep how large the source was, only what is taken from it.
        last = tuple(int(n) + 1 for n in plist.get_virtual_srcspace(i).get_select_bounds()[1])
        reach[place] = tuple(map(max, reach.get(place, last), last))
    sources = []
    for (name, dataset), needed in reach.items():
        source = path if name == "." else path.parent / name
        if not source.is_file():
            raise UserError(
                "The slide that virtual windows are cut from is missing",
                where=source,
                expected=f"the file beside {path.name}",
                fix="move or copy the folder as a whole, or export without --virtual",
            )
        with open_h5(source) as file:
            found = getattr(file.get(dataset), "shape", None)
        if found is None or len(found) != len(needed) or any(n < least for n, least in zip(found, needed, strict=True)):
            raise UserError(
                "The slide that virtual windows are cut from is another one",
                where=f"{source}, {dataset}",
                found="no such dataset" if found is None else " x ".join(map(str, found)),
                expected=f"at least {' x '.join(map(str, needed))}",
                fix="put the file of the same export back, or export again",
            )
        sources.append(source)
    return list(dict.fromkeys(sources))


def short(error: BaseException) -> str:
    """Return what an error of HDF5 says in one line."""
    return " ".join(str(error).split())
