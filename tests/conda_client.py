"""A stand-in for ``conda`` in tests, made of py-rattler. It is no conda: it answers just what Snakemake 9.27 asks.

These are ``--version``, ``info --json``, ``config --get channel_priority --json``, ``env create --file --prefix``,
``create --file --prefix`` (a list of exact packages), ``list --explicit --prefix``, ``clean -y --tarballs`` (nothing to
do here) and ``source .../bin/activate``. Environments are solved and installed by py-rattler, from one channel on this
disk in place of those that the file names. Where the running Python is not the file's, versions are the lock's for it
(`specs_here`). Anything else ends with an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import rattler

from conda_channel import SUBDIR, Channel
from environments import exact_packages, specs_here

VERSION = "24.99.0"
ACTIVATE = """export CONDA_PREFIX="$1"
export PATH="$1/bin:$PATH"
"""


def install_client(root: Path, channel: Channel) -> Path:
    """Write the stand-in's folder; returns the folder of the program ``conda``, for PATH."""
    (root / "bin").mkdir(parents=True)
    (root / "channel.json").write_text(json.dumps({"url": channel.url, "cache": str(channel.cache)}))
    command = shlex.join([sys.executable, __file__, str(root)])
    program = root / "bin" / "conda"
    program.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {command} "$@"\n')
    program.chmod(0o755)
    (root / "bin" / "activate").write_text(ACTIVATE)
    return program.parent


async def solve(channel: Channel, specs: Sequence[str]) -> list[rattler.RepoDataRecord]:
    """Solve for the given packages; ``CONDA_OVERRIDE_CUDA`` stands for a driver, as it does for conda."""
    return await rattler.solve(
        [rattler.Channel(channel.url)],
        list(specs),
        platforms=[SUBDIR, "noarch"],
        virtual_packages=rattler.VirtualPackage.detect(rattler.VirtualPackageOverrides.from_env()),
    )


async def create(channel: Channel, specs: Sequence[str], prefix: Path) -> list[rattler.RepoDataRecord]:
    """Solve for the given packages and install them into a prefix."""
    records = await solve(channel, specs)
    await rattler.install(records, prefix, cache_dir=channel.cache, show_progress=False)
    return records


def explicit_list(prefix: Path) -> str:
    """Return the exact packages of a prefix, as ``conda list --explicit`` writes them."""
    files = sorted((prefix / "conda-meta").glob("*.json"))
    urls = [json.loads(file.read_text(encoding="utf-8"))["url"] for file in files]
    return "\n".join([f"# platform: {SUBDIR}", "@EXPLICIT", *urls]) + "\n"


def main(root: Path, words: list[str]) -> None:
    """Answer one command of Snakemake's."""
    place = json.loads((root / "channel.json").read_text())
    channel = Channel(place["url"], Path(place["cache"]))
    if words == ["--version"]:
        sys.stdout.write(f"conda {VERSION}\n")
    elif words == ["info", "--json"]:
        sys.stdout.write(json.dumps({"conda_prefix": str(root), "platform": SUBDIR, "conda_version": VERSION}))
    elif words == ["config", "--get", "channel_priority", "--json"]:
        sys.stdout.write(json.dumps({"get": {"channel_priority": "strict"}}))
    elif words[:2] == ["env", "create"] or words[:1] == ["create"]:
        options = _options(words[2:] if words[0] == "env" else words[1:])
        file = Path(options.file)
        exact = [] if words[0] == "env" else exact_packages(file.read_text(encoding="utf-8"))
        specs = [f"{name}=={version} {build}" for name, version, build in exact] or specs_here(file)
        asyncio.run(create(channel, specs, Path(options.prefix)))
        with (root / "created.txt").open("a") as log:
            log.write(f"{words[0]} {file.name} {os.environ.get('CONDA_OVERRIDE_CUDA', '')}\n")
    elif words == ["clean", "-y", "--tarballs"]:
        pass  # The channel's packages are not packed.
    elif words[:2] == ["list", "--explicit"]:
        sys.stdout.write(explicit_list(Path(_options(words[2:]).prefix)))
    else:
        raise SystemExit(f"This stand-in for conda knows no: conda {shlex.join(words)}")


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--file")
    parser.add_argument("--prefix", required=True)
    for flag in ("--quiet", "--yes", "--no-default-packages", "--md5"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    # py-rattler's threads may abort the interpreter when it ends by itself.
    os._exit(0)
