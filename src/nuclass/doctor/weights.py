"""The weights of the networks: there, whole, of the right size; and whether those that are not can be had."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.progress import readable_bytes
from nuclass.doctor.case import Case
from nuclass.doctor.exam import Check, Finding, failed, of_error, passed, skipped, warned
from nuclass.doctor.networks import uses_of
from nuclass.models.backbones.hub import hub_is_off
from nuclass.models.backbones.registry import REGISTRY, WEIGHT_FILES
from nuclass.models.backbones.weights import (
    check_sent,
    download_command,
    identify,
    locate,
    own_folders,
)

_POINTER = b"version https://git-lfs"
_HEADER = 100_000_000
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Wanted:
    """Weights that the study wants from a file.

    Attributes
    ----------
    name
        Name of the network.
    parts
        What uses it, in words.
    hub_id, files
        Where registered weights come from, and the names their file may have; empty for a file of one's own.
    own
        A file or folder of one's own.
    parameters
        Parameters that the file holds at least; 0 where that is not known.
    gated
        Whether a licence must be accepted; None where that is not known.
    licence
        Its name.
    """

    name: str
    parts: str
    hub_id: str = ""
    files: tuple[str, ...] = WEIGHT_FILES
    own: str = ""
    parameters: int = 0
    gated: bool | None = None
    licence: str = ""


def wanted(models: Mapping[str, Any]) -> list[Wanted]:
    """Return the weights that the settings of the models want, each once."""
    parts: dict[str, list[str]] = {}
    found: dict[str, Wanted] = {}
    for use in uses_of(models):
        if use.part == "context" and use.trained:
            continue
        one = _wanted(use.backbone)
        if one is not None:
            key = one.hub_id or one.own
            parts.setdefault(key, []).append(use.part)
            found.setdefault(key, one)
    return [Wanted(**{**one.__dict__, "parts": ", ".join(parts[key])}) for key, one in found.items()]


def _wanted(backbone: Mapping[str, Any]) -> Wanted | None:
    name = str(backbone.get("name", ""))
    spec = REGISTRY.get(name)
    source = name.partition(":")[2] if name.startswith("transformers:") else str(backbone.get("path") or "")
    weights = backbone.get("weights", "required" if (spec and spec.hub_id) or source else "none")
    if weights in (None, "none"):
        return None
    if weights != "required":
        return Wanted(name, "", own=str(weights), parameters=spec.parameters if spec else 0)
    if spec is not None:
        return Wanted(name, "", spec.hub_id, spec.files, "", spec.parameters, spec.gated, spec.licence)
    if source.count("/") == 1 and not source.startswith(".") and not Path(source).is_dir():
        return Wanted(name, "", source)
    return Wanted(name, "", own=source)


def files(case: Case) -> list[Finding]:
    """Each network's weight file, by its header and size; the weights themselves are not read."""
    if not case.sound:
        return [skipped("the study cannot be read")]
    needed = wanted(case.study.models)
    if not needed:
        return [passed("the study's networks are trained here and need none", "weight files")]
    return [_file(case, one) for one in needed]


def _file(case: Case, one: Wanted) -> Finding:
    if one.own:
        place = case.root / one.own
        file = (
            next((place / name for name in WEIGHT_FILES if (place / name).is_file()), None) if place.is_dir() else place
        )
        if file is None or not file.is_file():
            return failed(
                f"for {one.parts}: nothing at {one.own}",
                "correct weights or path of the backbone in the models' file",
                one.name,
            )
    else:
        file = locate(one.hub_id, one.files, case.root)
        if file is None:
            return _absent(case, one)
    again = f"mv {file} {file}.broken && {_fetch(case, one)}" if one.hub_id else "get the file again"
    try:
        told, parameters = read_header(file, again)
    except UserError as error:
        return of_error(error, one.name)
    if 0 < parameters < one.parameters:
        return failed(
            f"{file} holds {parameters:,} parameters, the network has {one.parameters:,}: it is of another network",
            again,
            one.name,
        )
    return passed(f"for {one.parts}: {file}, {told}", one.name)


def hashes(case: Case) -> list[Finding] | Finding:
    """Each weight file's sha256 against what the hub told when it was downloaded."""
    if not case.sound:
        return skipped("the study cannot be read")
    here = [
        (one, file)
        for one in wanted(case.study.models)
        if one.hub_id and (file := locate(one.hub_id, one.files, case.root)) is not None
    ]
    if not here:
        return skipped("no weights of the hub are here")
    if not case.hashes:
        size = readable_bytes(float(sum(file.stat().st_size for _, file in here)))
        return skipped(f"compared whenever a network is loaded; nuclass doctor --hashes does it now ({size} to read)")
    return [_hash(file, one) for one, file in here]


def _hash(file: Path, one: Wanted) -> Finding:
    try:
        sent = check_sent(file, one.hub_id)
    except UserError as error:
        return of_error(error, one.name)
    told = f"{file}: sha256 {identify(file).sha256}"
    return passed(f"{told}, as the hub sent it", one.name) if sent else skipped(f"{told}; none on record", one.name)


def _fetch(case: Case, one: Wanted) -> str:
    if one.name in REGISTRY:
        return f"nuclass backbones fetch {one.name}"
    return download_command(one.hub_id, own_folders(one.hub_id, case.root)[-1])


def token_of(case: Case) -> str:
    """Return where the hub's token is, in words; empty where there is none."""
    if case.environ.get("HF_TOKEN") or case.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return "HF_TOKEN is set"
    home = case.environ.get("HF_HOME") or str(
        Path(case.environ.get("XDG_CACHE_HOME") or Path(case.environ.get("HOME", "~")).expanduser() / ".cache")
        / "huggingface"
    )
    file = Path(case.environ.get("HF_TOKEN_PATH") or Path(home) / "token")
    try:
        return f"a token lies in {file}" if file.read_text(encoding="utf-8").strip() else ""
    except OSError:
        return ""


def _absent(case: Case, one: Wanted) -> Finding:
    size = f" (about {readable_bytes(4.0 * one.parameters)})" if one.parameters else ""
    told = f"for {one.parts}: not on this machine{size}"
    get = _fetch(case, one)
    page = f"{case.environ.get('HF_ENDPOINT') or HUB}/{one.hub_id}"
    gate = f"accept the licence at {page}, then: " if one.gated else ""
    login = "" if not one.gated or token_of(case) else "hf auth login && "
    off = hub_is_off()
    if off or case.offline:
        why = f"{off} is set" if off else "offline"
        return failed(
            f"{told}, and {why}",
            f"on a machine with a network: {gate}{login}{get}   and copy backbones/ here",
            one.name,
        )
    if login:
        return failed(
            f"{told}; gated ({one.licence}), and there is no token of the hub", f"{gate}{login}{get}", one.name
        )
    told += f"; gated ({one.licence})" if one.gated else ""
    return warned(
        f"{told}; it is downloaded when first used, if the machine of that job has a network", f"{gate}{get}", one.name
    )


def read_header(file: Path, again: str) -> tuple[str, int]:
    """Return what a weight file tells without its tensors, and how many parameters it holds (0: not told).

    Parameters
    ----------
    file
        ``.safetensors``, whose header names all tensors and where they end, or what ``torch.save`` wrote.
    again
        What to do about a broken file.

    Raises
    ------
    UserError
        For a pointer of Git LFS, a header that cannot be read, and a file that is cut off or too long.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(len(_POINTER))
        if head == _POINTER:
            raise UserError("a weight file is only a pointer of Git LFS", where=file, fix=again)
        if file.suffix != ".safetensors":
            # A zip, or the older plain pickle.
            if head[:4] != b"PK\x03\x04" and head[:1] != b"\x80":
                raise UserError(
                    "a weight file is nothing that torch.save wrote", where=file, found=repr(head[:8]), fix=again
                )
            return readable_bytes(size), 0
        stream.seek(0)
        length = struct.unpack("<Q", stream.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= min(size, _HEADER):
            raise UserError("a weight file is no safetensors file", where=file, found=f"{size:,} bytes", fix=again)
        header = stream.read(length)
    try:
        tensors = {name: one for name, one in json.loads(header).items() if name != "__metadata__"}
        end = max((one["data_offsets"][1] for one in tensors.values()), default=0)
        parameters = sum(prod(one["shape"]) for one in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            "the header of a weight file cannot be read", where=file, found=str(error), fix=again
        ) from error
    if 8 + length + end != size:
        raise UserError(
            "a weight file is cut off" if size < 8 + length + end else "a weight file is longer than its header says",
            where=file,
            found=f"{size:,} bytes of {8 + length + end:,}",
            fix=again,
        )
    return f"{readable_bytes(size)}, {len(tensors)} tensors, {parameters:,} parameters", parameters


def access(case: Case) -> Finding:
    """Licences that must be accepted, and the hub's token."""
    if not case.sound:
        return skipped("the study cannot be read")
    gated = [one for one in wanted(case.study.models) if one.gated]
    token = token_of(case)
    if not gated:
        return skipped("no network of the study wants an accepted licence")
    names = ", ".join(f"{one.name} ({one.licence})" for one in gated)
    missing = [one for one in gated if locate(one.hub_id, one.files, case.root) is None]
    if not missing:
        return passed(f"{names}: all here; their licences bind what you make with them")
    pages = [f"{case.environ.get('HF_ENDPOINT') or HUB}/{one.hub_id}" for one in missing]
    if token:
        return passed(f"{names}; {token}. Whether the licences are accepted is known only at {', '.join(pages)}")
    return warned(
        f"{names}; there is no token of the hub",
        "\n".join(["accept the licences at", *pages, "then: hf auth login   (or set HF_TOKEN)"]),
    )


def hub_offline(case: Case) -> Finding:
    """Variables that forbid to ask the hub."""
    off = hub_is_off()
    if off is None:
        return passed("the hub may be asked")
    absent = []
    if case.sound:
        absent = [
            one.name for one in wanted(case.study.models) if one.hub_id and not locate(one.hub_id, one.files, case.root)
        ]
    if absent:
        return failed(
            f"{off} is set, and weights are missing: {', '.join(absent)}", f"unset {off}, or bring the files by hand"
        )
    return passed(f"{off} is set; nothing is missing")


CHECKS = [
    Check("weights", "weight files", files, 30.0),
    Check("weights", "sha256", hashes, 900.0),
    Check("weights", "gated licences", access, 20.0),
    Check("weights", "hub", hub_offline, 20.0),
]
