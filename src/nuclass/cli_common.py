"""What all commands share: how one is added, and the settings it takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nuclass.core.own_files import home, own_file

BASE = Path("config/config.yaml")


def add_command(
    commands: argparse._SubParsersAction[Any], name: str, short: str, about: str
) -> argparse.ArgumentParser:
    """Add a command with its one-line help and its description, which keeps its lines."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=short, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_debug(parser, argparse.SUPPRESS)
    return parser


def add_debug(parser: argparse.ArgumentParser, default: Any) -> None:
    """Add ``--debug``, which may stand before a command or behind it."""
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def add_settings(parser: argparse.ArgumentParser, section: str = "") -> None:
    """Add ``--configfile``; ``section`` names the one section of the settings that the command reads."""
    parser.add_argument(
        "--configfile",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help=f"settings laid over {BASE}, the last file winning"
        + (f"; of them the section {section} counts" if section else ""),
    )


def study_file(path: str | Path) -> Path:
    """Return a file that the settings name: of the study in this folder, else the one that comes along."""
    return own_file(path)


def add_own_markers(parser: argparse.ArgumentParser) -> None:
    """Add ``--markers``."""
    parser.add_argument(
        "--markers",
        type=Path,
        metavar="FILE",
        help="marker table of your own, added to the one that comes along (default: labels.extra_markers)",
    )


def own_markers(options: argparse.Namespace, settings: dict[str, Any]) -> Path | None:
    """Return the user's own marker table: that of the command line, else that of the settings, None without any."""
    from nuclass.core.errors import UserError

    if options.markers is None:
        named = settings["labels"]["extra_markers"]
        return study_file(named) if named else None
    if not options.markers.is_file():
        raise UserError(
            "--markers names no file", where=options.markers, expected="a marker table, such as config/markers.tsv"
        )
    return Path(options.markers)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the checked settings: those of the study in this folder, overlaid by ``--configfile``.

    Outside a study they are those of the repository that the library lies in.
    """
    from nuclass.core.config import load_settings

    root = Path() if BASE.is_file() else home()
    return load_settings([BASE, *(file.absolute() for file in options.configfile)], root)
