"""The command ``nuclass backbones``: which there are, whether their weights are here, and how to get them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.cli_common import add_command

if TYPE_CHECKING:
    from nuclass.models.backbones import BackboneSpec

_ABOUT = """\
List the image backbones that are known by name: library, parameters, width of the features, side of the images,
licence, and the weight file on this machine. Weights are looked for in $NUCLASS_BACKBONES/<hub id>/, in
backbones/<hub id>/ of this folder, and in the hub's own cache. 'gated' weights can be downloaded once their licence is
accepted on the hub and 'hf auth login' was run.

Besides these, a model file may name timm:<architecture> or transformers:<folder or hub id>; docs/backbones.md.

examples:
  nuclass backbones
  nuclass backbones --sha256
  nuclass backbones fetch plip
"""
_ABOUT_FETCH = """\
Download the weights of a registered backbone to backbones/<hub id>/ in this folder, or under --root. A file that is
there already is kept.

examples:
  nuclass backbones fetch uni2-h
  nuclass backbones fetch musk --root /data/study
"""
_HEADINGS = ("name", "library", "parameters", "features", "px", "licence", "gated", "weights")
_RIGHT = ("parameters", "features", "px")


def add_backbones(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``nuclass backbones`` with its part ``fetch``."""
    parser = add_command(commands, "backbones", "List the image backbones, or fetch one's weights", _ABOUT)
    parser.add_argument(
        "--sha256",
        action="store_true",
        help="tell size and sha256 of each weight file, and whether the hub said the same (reads it all)",
    )
    _add_root(parser, Path())
    parser.set_defaults(run=_list)
    parts = parser.add_subparsers(metavar="fetch")
    fetch = add_command(parts, "fetch", "Download the weights of a backbone", _ABOUT_FETCH)
    fetch.add_argument("name", help="name of a registered backbone")
    _add_root(fetch, argparse.SUPPRESS)
    fetch.set_defaults(run=_fetch)


def _add_root(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument(
        "--root", type=Path, default=default, metavar="FOLDER", help="folder that holds backbones/ (default: this one)"
    )


def _list(options: argparse.Namespace) -> None:
    from nuclass.models.backbones import REGISTRY

    rows = [list(_HEADINGS)]
    notes = []
    for spec in REGISTRY.values():
        row, note = _row(spec, options.root, options.sha256)
        rows.append(row)
        notes += note
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEADINGS))]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "  ".join(
            value.rjust(width) if heading in _RIGHT else value.ljust(width)
            for value, width, heading in zip(row, widths, _HEADINGS, strict=True)
        ).rstrip()
        for row in rows
    ]
    sys.stdout.write("\n".join(lines + (["", *notes] if notes else [])) + "\n")


def _row(spec: BackboneSpec, root: Path, hashed: bool) -> tuple[list[str], list[str]]:
    from nuclass.models.backbones import locate

    file = locate(spec.hub_id, spec.files, root) if spec.hub_id else None
    place = str(file) if file else (f"missing: nuclass backbones fetch {spec.name}" if spec.hub_id else "trained here")
    row = [
        spec.name,
        spec.library,
        f"{spec.parameters:,}",
        str(spec.feature_dim),
        str(spec.input_px),
        spec.licence or "-",
        "yes" if spec.gated else "no",
        place,
    ]
    if not (hashed and file):
        return row, []
    return row, [f"{spec.name}: {_told(file, spec.hub_id)}"]


def _told(file: Path, hub_id: str) -> str:
    """Return size and sha256 of a weight file, and whether the hub said the same."""
    from nuclass.models.backbones import check_sent, identify

    taken = identify(file, hub_id)
    known = "as the hub sent it" if check_sent(file, hub_id) else "what the hub sent is not on record"
    return f"{taken.bytes:,} bytes, sha256 {taken.sha256}, {known}"


def _fetch(options: argparse.Namespace) -> None:
    from nuclass.core.errors import UserError, closest
    from nuclass.models.backbones import REGISTRY
    from nuclass.models.backbones.hub import fetch

    can = [name for name, spec in REGISTRY.items() if spec.hub_id]
    if options.name not in can:
        raise UserError(
            "There are no weights of this name to fetch",
            where="nuclass backbones fetch",
            found=options.name,
            expected=", ".join(can),
            fix=f"take a name of the list.{closest(options.name, can)}",
        )
    spec = REGISTRY[options.name]
    folder = options.root / "backbones" / spec.hub_id
    there = next((folder / name for name in spec.files if (folder / name).is_file()), None)
    file = there or fetch(spec, folder)
    done = "is there already" if there else "fetched"
    sys.stdout.write(
        f"{file} {done}: {_told(file, spec.hub_id)}. Licence: {spec.licence}"
        f"{' (accepted by you on the hub)' if spec.gated else ''}.\n"
    )
