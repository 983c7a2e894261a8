"""What a result was made from: settings, code, packages, machine, inputs."""

from __future__ import annotations

import datetime
import os
import pickletools
import platform
import re
import subprocess
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import nuclass
from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, read_json, sha256
from nuclass.core.protocol import describe, parse_protocol

PACKAGES = (
    "anndata",
    "h5py",
    "igraph",
    "leidenalg",
    "lightning",
    "matplotlib",
    "numpy",
    "pandas",
    "pyarrow",
    "scanpy",
    "scikit-learn",
    "scipy",
    "snakemake",
    "tifffile",
    "timm",
    "torch",
    "transformers",
    "zarr",
)


def run_record(
    config: Mapping[str, Any],
    tables: Iterable[str | Path],
    bundles: Mapping[str, str | Path],
    root: str | Path = ".",
    patches: Mapping[str, str | Path] | None = None,
    outputs: Iterable[str | Path] = (),
    checkpoints: Iterable[str | Path] = (),
) -> dict[str, Any]:
    """Return what is needed to say later how a run came about.

    Parameters
    ----------
    config
        The settings in force.
    tables
        Small input files: sheets, ontology, markers, given labels, model settings. Size and SHA-256 are recorded.
    bundles
        The inventory (``bundle.json``) of every slide; size and SHA-256 of each of its files are taken from there.
    root
        The repository, for the state of its version control.
    patches
        The manifest (``patches.json``) of every slide that came as patch files; size and time of change of each
        file are taken from there, and its place in the slide's folder.
    outputs
        Results of the run; size and SHA-256 of each are recorded.
    checkpoints
        The trained models; the versions that each was written with are taken from it. ``packages`` are those of the
        environment that this runs in, which need not be the one that trained.
    """
    inventories = {slide: read_json(path) for slide, path in bundles.items()}
    return {
        "study": config["study"],
        "protocol": describe(parse_protocol(config.get("protocol"))),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": {"nuclass": nuclass.__version__, **git_state(root)},
        "machine": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "packages": package_versions(),
        "checkpoints": {str(path): checkpoint_versions(path) for path in checkpoints},
        "inputs": {str(path): _state(path) for path in tables},
        "bundles": {slide: _bundle_summary(inventory) for slide, inventory in inventories.items()},
        "patches": {slide: _patches_summary(read_json(path)) for slide, path in (patches or {}).items()},
        "outputs": {str(path): _state(path) for path in outputs},
        "seeds": seeds_of(config),
        "config": dict(config),
    }


def seeds_of(config: Mapping[str, Any], above: str = "") -> dict[str, int]:
    """Return every setting named ``seed`` by its dotted name, such as ``evaluation.seed``."""
    found: dict[str, int] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= seeds_of(value, f"{above}{name}.")
        elif name == "seed" and isinstance(value, int):
            found[f"{above}{name}"] = value
    return found


def copy_workflow(root: str | Path, folder: str | Path) -> list[str]:
    """Copy Snakefile and rules of the repository into a folder, as they stand there.

    Returns
    -------
    Their paths from the folder's parent, the Snakefile first.
    """
    files = [Path("workflow/Snakefile"), *sorted(p.relative_to(root) for p in Path(root).glob("rules/*.smk"))]
    with atomic_path(folder) as temporary:
        for file in files:
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            (temporary / file).write_bytes((Path(root) / file).read_bytes())
    return [(Path(Path(folder).name) / file).as_posix() for file in files]


def places(paths: Iterable[str], folder: str | Path | None = None) -> dict[str, str]:
    """Return for each path a name of its own that tells no folder of the machine.

    A path in ``folder`` is named by its place from there, a relative one as it is, and any other by its bare name, with
    a number before it where that is taken.
    """
    names: dict[str, str] = {}
    elsewhere = []
    for path in dict.fromkeys(paths):
        if folder is not None and Path(path).is_relative_to(folder):
            names[path] = Path(path).relative_to(folder).as_posix()
        elif Path(path).is_absolute():
            elsewhere.append(path)
        else:
            names[path] = path
    taken = set(names.values())
    for path in elsewhere:
        name, number = Path(path).name, 1
        while (shown := name if number == 1 else f"{number}/{name}") in taken:
            number += 1
        taken.add(shown)
        names[path] = shown
    return names


def checkpoint_versions(path: str | Path) -> dict[str, str]:
    """Return the versions (``nuclass``, ``torch``, ``python``) that a checkpoint says it was written with.

    Only the beginning of the file's table of contents is read, and nothing is loaded: this needs no torch.

    Raises
    ------
    UserError
        The file is no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as stream:
                return _versions(stream)
    except (zipfile.BadZipFile, StopIteration, ValueError) as error:
        fix = "train the model again, or take it in with 'nuclass import-checkpoint'"
        raise UserError("A file is no checkpoint, or was cut off", where=path, found=str(error), fix=fix) from error


def _versions(stream: IO[bytes]) -> dict[str, str]:
    """Return the dictionary of texts that stands under ``versions`` of a pickled dictionary, empty where none does."""
    memo: dict[int, Any] = {}
    last: Any = None
    texts: list[str] | None = None
    for code, value, _ in pickletools.genops(stream):
        if "PUT" in code.name:
            memo[int(value or 0)] = last
            continue
        if code.name == "MEMOIZE":
            memo[len(memo)] = last
            continue
        last = memo.get(int(value or 0)) if "GET" in code.name else value
        if texts is None:
            texts = [] if last == "versions" else None
        elif code.name == "SETITEMS":
            return dict(zip(texts[::2], texts[1::2], strict=True))
        elif isinstance(last, str):
            texts.append(last)
    return {}


def _state(path: str | Path) -> dict[str, Any]:
    return {"bytes": Path(path).stat().st_size, "sha256": sha256(path)}


def _patches_summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    files: dict[str, Mapping[str, Any]] = {}
    for part in manifest["parts"]:
        for entry in (part["annotations"], *part["files"].values()):
            # Virtual windows point into further files.
            files |= {found["path"]: found for found in (entry, *entry.get("sources", []))}
    folder = os.path.commonpath([part["folder"] for part in manifest["parts"]])
    return {
        "mpp": manifest["mpp"],
        "windows": manifest["windows"],
        "folder": folder,
        "files": {
            name: {"bytes": files[path]["size"], "mtime_ns": files[path]["mtime_ns"]}
            for path, name in places(files, folder).items()
        },
    }


def _bundle_summary(inventory: Mapping[str, Any]) -> dict[str, Any]:
    files = inventory.get("files", {})
    return {
        "source": inventory.get("source"),
        "xoa_version": inventory.get("xoa_version"),
        "files": {name: {key: entry.get(key) for key in ("bytes", "sha256")} for name, entry in files.items()},
        "bytes": sum(int(entry.get("bytes", 0)) for entry in files.values()),
    }


def git_state(root: str | Path) -> dict[str, Any]:
    """Return the commit of the repository and whether tracked files differ from it (None: not known).

    A copy of a version, in a folder that bears its commit's name, is that commit, whatever repository it lies in.
    """
    name = Path(root).resolve().name
    if not (Path(root) / ".git").exists() and re.fullmatch(r"[0-9a-f]{40}", name):
        return {"commit": name, "dirty": False}
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(root: str | Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each package (None where it is not installed)."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
