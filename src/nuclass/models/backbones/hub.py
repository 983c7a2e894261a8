"""Download weights from the hub: asked with a short limit, told how large, put where they are looked for."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.models.backbones.registry import BackboneSpec
from nuclass.models.backbones.weights import download_command

_log = get_logger(__name__)

FIRST_ANSWER_S = 5.0
_BESIDE = ("config.json", "preprocessor_config.json")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class HubSilentError(Exception):
    """The hub did not answer, or must not be asked."""


def hub_is_off() -> str | None:
    """Return the variable that forbids to ask the hub, ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``, if one does."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def download(hub_id: str, files: tuple[str, ...], folder: Path) -> Path:
    """Download a repository's weight file, with its config files, and return it.

    Parameters
    ----------
    hub_id, files
        Repository, and the names of its weight file; the first that is there is taken.
    folder
        Where to; made if need be. A file appears there when it is whole.

    Raises
    ------
    HubSilentError
        When the hub does not answer within 5 s, or must not be asked.
    UserError
        Without access, without such a repository or file, and when the disk is too small.
    """
    sizes = _listing(hub_id, folder)
    name = next((name for name in files if name in sizes), None)
    if name is None:
        raise UserError(
            "A repository of the hub has no weight file that is known",
            where=hub_id,
            found=", ".join(sorted(sizes)) or "no file",
            expected=" or ".join(files),
            fix="check the hub id; or download by hand and name the file by the key 'weights'",
        )
    _check_disk(folder, sizes[name])
    _log.info("downloading %s of %s (%.2f GB) to %s", name, hub_id, sizes[name] / 1e9, folder)
    for beside in (item for item in _BESIDE if item in sizes):
        _get(hub_id, beside, folder)
    return _get(hub_id, name, folder)


def fetch(spec: BackboneSpec, folder: Path) -> Path:
    """Download the weights of a registered backbone to ``folder`` and return the file.

    Raises
    ------
    UserError
        As :func:`download`, and when the hub does not answer or must not be asked.
    """
    try:
        return download(spec.hub_id, spec.files, folder)
    except HubSilentError as error:
        raise UserError(
            f"The weights of {spec.name} cannot be fetched",
            where=f"{spec.hub_id} on the hub",
            found=str(error),
            expected="an answer of the hub",
            fix=f"try again with a network (and without {hub_is_off() or 'HF_HUB_OFFLINE'}), or on another machine "
            f"run: {download_command(spec.hub_id, folder)}   and copy the folder here",
        ) from error


def _listing(hub_id: str, folder: Path) -> dict[str, int]:
    if variable := hub_is_off():
        raise HubSilentError(f"{variable} is set")
    from huggingface_hub import HfApi

    def ask() -> Any:
        return HfApi().model_info(hub_id, files_metadata=True, timeout=FIRST_ANSWER_S)

    info = _guarded(ask, hub_id, folder)
    return {item.rfilename: int(item.size or 0) for item in info.siblings or ()}


def _get(hub_id: str, name: str, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    folder.mkdir(parents=True, exist_ok=True)
    return Path(_guarded(lambda: hf_hub_download(hub_id, name, local_dir=folder), hub_id, folder))


def _guarded(ask: Any, hub_id: str, folder: Path) -> Any:
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError as error:
        raise UserError(
            "The weights are gated, and this account has no access to them",
            where=hub_id,
            fix=f"accept the licence on the page {hub_id} of the hub, run: hf auth login   "
            f"then: {download_command(hub_id, folder)}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            "The hub shows no repository of this name",
            where=hub_id,
            expected="owner/name of a model; a private one is shown only after: hf auth login",
            fix="check the hub id",
        ) from error
    except (errors.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise UserError("The weights cannot be written", where=folder, found=error.strerror) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HubSilentError(f"the hub did not answer: {reason}") from error


def _check_disk(folder: Path, size: int) -> None:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < size:
        raise UserError(
            "The disk is too small for the weights",
            where=folder,
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{size / 1e9:.1f} GB",
            fix="make room, or set NUCLASS_BACKBONES to a folder on another disk and download there",
        )
