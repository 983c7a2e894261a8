"""What a result was made from: settings, code, packages, machine, inputs."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import nuclass
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
) -> dict[str, Any]:
    """Return what is needed to say later how a run came about.

    Parameters
    ----------
    config
        The settings in force.
    tables
        Small input files: sheets, ontology, markers, model settings. Their SHA-256 is recorded.
    bundles
        The inventory (``bundle.json``) of every slide; the SHA-256 of each of its files is taken from there.
    root
        The repository, for the state of its version control.
    patches
        The manifest (``patches.json``) of every slide that came as patch files; size and time of change of each
        file are taken from there.
    outputs
        Results of the run; size and SHA-256 of each are recorded.
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
        "inputs": {str(path): sha256(path) for path in tables},
        "bundles": {slide: _bundle_summary(inventory) for slide, inventory in inventories.items()},
        "patches": {slide: _patches_summary(read_json(path)) for slide, path in (patches or {}).items()},
        "outputs": {str(path): {"bytes": Path(path).stat().st_size, "sha256": sha256(path)} for path in outputs},
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


def _patches_summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    files = [entry for part in manifest["parts"] for entry in part["files"].values()]
    return {
        "mpp": manifest["mpp"],
        "windows": manifest["windows"],
        "files": {entry["path"]: {"bytes": entry["size"], "mtime_ns": entry["mtime_ns"]} for entry in files},
    }


def _bundle_summary(inventory: Mapping[str, Any]) -> dict[str, Any]:
    files = inventory.get("files", {})
    return {
        "source": inventory.get("source"),
        "xoa_version": inventory.get("xoa_version"),
        "files": {name: entry.get("sha256") for name, entry in files.items()},
        "bytes": sum(int(entry.get("bytes", 0)) for entry in files.values()),
    }


def git_state(root: str | Path) -> dict[str, Any]:
    """Return the commit of the repository and whether tracked files differ from it (None: not known)."""
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
