"""A conda channel on this disk, made of the running environment: each installed wheel, and Python itself, as a package.

No conda channel need be in reach. A package is not packed: its files lie as hard links in a package cache, where the
installer takes them from, so the 7 GB of the environment are neither copied nor compressed. What is real: names,
versions, dependencies (from each wheel's METADATA, its markers evaluated), the solver, the installer and the prefixes.
What is not: the packages are PyPI's builds and not conda-forge's, and Python is the one that runs (its shared library
stays where it was built for).
"""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONDA_NAMES = {
    "huggingface-hub": "huggingface_hub",
    "igraph": "python-igraph",
    "matplotlib": "matplotlib-base",
    "openslide-bin": "openslide",
    "torch": "pytorch",
}
"""Where conda-forge's name of a package is not that of PyPI (PyPI's name first): the one list of the project."""

LIBRARIES = {"openslide-python": ["openslide"]}
"""What conda-forge's package asks for and the wheel does not: libraries that another wheel brings."""

SUBDIR = f"linux-{'64' if platform.machine() == 'x86_64' else platform.machine()}"
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Channel:
    """A channel: its ``file://`` address, and the cache that holds its packages unpacked."""

    url: str
    cache: Path


def conda_name(name: str) -> str:
    """Return conda-forge's name of a package of PyPI."""
    plain = canonicalize_name(name)
    return CONDA_NAMES.get(plain, plain)


def write_channel(folder: Path) -> Channel:
    """Write a channel of all that is installed in the running environment, the library itself left out."""
    records = [_write_python(folder / "cache")]
    for package in _installed().values():
        records.append(_write_wheel(package, folder / "cache"))
    return write_index(folder, records)


def write_index(folder: Path, records: list[dict[str, Any]]) -> Channel:
    """Write the index of a channel with the given packages."""
    for subdir, listed in ((SUBDIR, records), ("noarch", [])):
        index = {f"{_build_name(record)}.conda": record for record in listed}
        target = folder / "channel" / subdir / "repodata.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({"info": {"subdir": subdir}, "packages": {}, "packages.conda": index}))
    return Channel((folder / "channel").as_uri(), folder / "cache")


def record_of(name: str, version: str, depends: list[str], build: str = "0", number: int = 0) -> dict[str, Any]:
    """Return a package's entry in the index."""
    return {
        "name": name,
        "version": version,
        "build": build,
        "build_number": number,
        "depends": depends,
        "subdir": SUBDIR,
        "timestamp": 1_700_000_000_000,
    }


def _build_name(record: dict[str, Any]) -> str:
    return f"{record['name']}-{record['version']}-{record['build']}"


def _installed() -> dict[str, metadata.Distribution]:
    """Return the installed packages by PyPI's plain name; the first of a name on the path is the one in use."""
    found: dict[str, metadata.Distribution] = {}
    for package in metadata.distributions():
        name = canonicalize_name(package.metadata["Name"])
        if name != "nuclass":
            found.setdefault(name, package)
    return found


def _write_wheel(package: metadata.Distribution, cache: Path) -> dict[str, Any]:
    record = record_of(conda_name(package.metadata["Name"]), package.version.replace("-", "_"), _depends(package))
    prefix = Path(sys.prefix)
    files: dict[str, tuple[Path, str | None]] = {}
    for entry in package.files or []:
        source = Path(os.path.normpath(str(entry.locate())))
        if prefix not in source.parents or not source.is_file():
            continue
        digest = entry.hash.value if entry.hash is not None and entry.hash.mode == "sha256" else None
        files[str(source.relative_to(prefix))] = (source, digest)
        compiled = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        if source.suffix == ".py" and compiled.is_file():
            files[str(compiled.relative_to(prefix))] = (compiled, None)
    _write_package(record, files, cache)
    return record


def _write_python(cache: Path) -> dict[str, Any]:
    """Write the running Python as a package: the program, its library of modules and, where there is one, its own."""
    record = record_of("python", platform.python_version(), [])
    base = Path(sys.base_prefix)
    standard = Path(sysconfig.get_path("stdlib"))
    modules = Path("lib") / f"python{MINOR}"
    files: dict[str, tuple[Path, str | None]] = {
        f"bin/python{MINOR}": (Path(os.path.realpath(sys.executable)), None),
    }
    for source in _modules_of(standard):
        files[str(modules / source.relative_to(standard))] = (source, None)
    for source in (base / "lib").glob("libpython*.so*"):
        files[f"lib/{source.name}"] = (Path(os.path.realpath(source)), None)
    # Debian's own Python looks for packages in another folder.
    links = {
        "bin/python": f"python{MINOR}",
        "bin/python3": f"python{MINOR}",
        str(modules / "dist-packages"): "site-packages",
    }
    _write_package(record, files, cache, links)
    return record


def _modules_of(standard: Path) -> Iterator[Path]:
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "ensurepip", "turtledemo"}
    for folder, folders, names in os.walk(standard):
        folders[:] = [name for name in folders if name not in left_out and not name.startswith("config-")]
        yield from (Path(folder) / name for name in names)


def _write_package(
    record: dict[str, Any],
    files: dict[str, tuple[Path, str | None]],
    cache: Path,
    links: dict[str, str] | None = None,
) -> None:
    folder = cache / _build_name(record)
    entries: list[dict[str, Any]] = []
    for name, (source, digest) in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source, target)
        entry: dict[str, Any] = {"_path": name, "path_type": "hardlink", "size_in_bytes": source.stat().st_size}
        if digest is not None:
            entry["sha256"] = base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
        if name.startswith("bin/") and _names_prefix(source):
            entry |= {"prefix_placeholder": sys.prefix, "file_mode": "text"}
        entries.append(entry)
    for name, goal in (links or {}).items():
        (folder / name).symlink_to(goal)
        entries.append({"_path": name, "path_type": "softlink"})
    (folder / "info").mkdir(parents=True)
    (folder / "info" / "index.json").write_text(json.dumps(record))
    (folder / "info" / "paths.json").write_text(json.dumps({"paths_version": 1, "paths": entries}))


def _names_prefix(source: Path) -> bool:
    """Return whether a program's first line names the running environment, as those of wheels do."""
    with source.open("rb") as file:
        return file.read(2) == b"#!" and sys.prefix.encode() in file.readline()


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def _depends(package: metadata.Distribution) -> list[str]:
    """Return what a wheel needs, as conda writes it; an extra that is asked for brings its own needs."""
    name = conda_name(package.metadata["Name"])
    depends = {f"python {MINOR}.*", *LIBRARIES.get(name, [])}
    _add_needs(package, "", depends, set())
    return sorted(depends)


def _add_needs(package: metadata.Distribution, extra: str, depends: set[str], seen: set[tuple[str, str]]) -> None:
    key = (canonicalize_name(package.metadata["Name"]), extra)
    if key in seen:
        return
    seen.add(key)
    for line in package.requires or []:
        need = Requirement(line)
        marker = need.marker
        if marker is not None and not marker.evaluate({"extra": extra}):
            continue
        if extra and marker is not None and marker.evaluate({"extra": ""}):
            continue
        if canonicalize_name(need.name) != key[0]:
            depends.add(f"{conda_name(need.name)} {_range(str(need.specifier))}".strip())
        other = _installed_cached().get(canonicalize_name(need.name))
        for wanted in need.extras:
            if other is not None:
                _add_needs(other, wanted, depends, seen)


_CACHED: dict[str, metadata.Distribution] = {}


def _installed_cached() -> dict[str, metadata.Distribution]:
    if not _CACHED:
        _CACHED.update(_installed())
    return _CACHED


def _range(specifier: str) -> str:
    """Return a range of versions as conda writes it; PyPI's ``==1.2.*`` and ``~=`` mean the same there."""
    return ",".join(sorted(re.sub(r"^===", "==", part.strip()) for part in specifier.split(",") if part.strip()))
