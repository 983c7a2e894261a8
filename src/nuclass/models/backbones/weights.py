"""Where the weight file of a backbone lies, and what it is: name, size, sha256."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.models.backbones.registry import WEIGHT_FILES, BackboneSpec

_log = get_logger(__name__)
_HASHES: dict[tuple[str, int, int], str] = {}

VARIABLE = "NUCLASS_BACKBONES"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightFile:
    """The file that a backbone's weights came from.

    Attributes
    ----------
    file
        Its name, without the folder.
    hub_id
        Owner and name on the hub; empty for a file of one's own.
    sha256
        Of the whole file.
    bytes
        Its size.
    """

    file: str
    hub_id: str
    sha256: str
    bytes: int


def identify(file: Path, hub_id: str = "") -> WeightFile:
    """Return name, size and sha256 of a weight file; a file is hashed once in a process (about 2 s for each GB)."""
    facts = file.stat()
    key = (str(file.resolve()), facts.st_size, facts.st_mtime_ns)
    if key not in _HASHES:
        with file.open("rb") as stream:
            _HASHES[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return WeightFile(file.name, hub_id, _HASHES[key], facts.st_size)


def told_sha256(file: Path) -> str | None:
    """Return the sha256 that the hub told when it sent a file; None where that is not on record beside it.

    The hub's cache names large files by it. A download into a folder keeps it as the second line of
    ``.cache/huggingface/download/<file>.metadata`` below that folder (layout of huggingface_hub 0.24 to 1.x).
    """
    blob = file.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    for folder in file.absolute().parents[:2]:
        note = folder / ".cache/huggingface/download" / f"{file.absolute().relative_to(folder)}.metadata"
        if note.is_file():
            lines = note.read_text(encoding="utf-8", errors="replace").splitlines()
            if len(lines) > 1 and _SHA256.fullmatch(lines[1].strip()):
                return lines[1].strip()
    return None


def check_sent(file: Path, hub_id: str) -> bool:
    """Compare a weight file of the hub with what the hub said of it; return False where nothing is on record.

    The file is read whole (about 2 s for each GB), once in a process.

    Raises
    ------
    UserError
        When its sha256 is another one.
    """
    told = told_sha256(file)
    if told is None:
        return False
    found = identify(file).sha256
    if found != told:
        blob = file.resolve()
        again = (
            f"rm {blob} && hf download {hub_id}"
            if blob.parent.name == "blobs"
            else f"rm {file} && {download_command(hub_id, file.parent)}"
        )
        raise UserError(
            "A weight file is not what the hub sent",
            where=file,
            found=f"sha256 {found}",
            expected=f"sha256 {told}",
            fix=f"{again}   (weights of your own lie elsewhere and are named by the key 'weights')",
        )
    return True


def own_folders(hub_id: str, root: Path) -> list[Path]:
    """Return the folders of the user where weights are looked for, in order."""
    given = os.environ.get(VARIABLE)
    bases = [Path(given)] if given else []
    return [base / hub_id for base in (*bases, root / "backbones")]


def locate(hub_id: str, files: tuple[str, ...], root: Path) -> Path | None:
    """Return the weight file of a hub id on this machine, None without one.

    Looked for in ``$NUCLASS_BACKBONES/<hub id>/``, in ``<root>/backbones/<hub id>/``, then in the hub's own cache.
    """
    for folder in own_folders(hub_id, root):
        for name in files:
            if (folder / name).is_file():
                return folder / name
    return next((path for path in (_cached(hub_id, name) for name in files) if path is not None), None)


def _cached(hub_id: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name)
    return Path(found) if isinstance(found, str) else None


def find_weights(spec: BackboneSpec, root: Path) -> Path:
    """Return the folder with the weights of a registered backbone; the hub is not asked.

    Raises
    ------
    UserError
        When there is no weight file (see :func:`locate`), with the command that downloads it.
    """
    file = locate(spec.hub_id, spec.files, root)
    if file is None:
        raise missing(spec.name, spec.hub_id, spec.files, root, gated=spec.gated)
    return file.parent


def missing(
    name: str, hub_id: str, files: tuple[str, ...], root: Path, *, gated: bool = False, why: str | None = None
) -> UserError:
    """Return the error for weights that are nowhere; ``why`` tells what became of the download."""
    folders = own_folders(hub_id, root)
    gate = f"accept the licence on the page {hub_id} of the hub, then " if gated else ""
    return UserError(
        f"The weights of {name} are missing",
        where=" or ".join(str(folder) for folder in folders),
        found=why,
        expected=" or ".join(files),
        fix=f"{gate}run: {download_command(hub_id, folders[-1])}   "
        f"(or set {VARIABLE} to the folder that holds your backbones)",
    )


def download_command(hub_id: str, folder: Path) -> str:
    """Return the command that downloads a repository of the hub."""
    return f"hf download {hub_id} --local-dir {folder}"


def weight_file_in(folder: Path) -> Path | None:
    """Return the weight file of a folder as ``save_pretrained`` writes it."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
