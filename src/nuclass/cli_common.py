"""What all commands share: how one is added, and the settings it takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nuclass

BASE = Path("config/config.yaml")


def add_command(
    commands: argparse._SubParsersAction[Any], name: str, short: str, about: str
) -> argparse.ArgumentParser:
    """Add a command with its one-line help and its description, which keeps its lines."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=short, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser


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


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the checked settings: those of the study in this folder, overlaid by ``--configfile``.

    Outside a study they are those of the repository that the library lies in.
    """
    from nuclass.core.config import load_settings

    root = Path() if BASE.is_file() else Path(nuclass.__file__).parents[2]
    return load_settings([BASE, *(file.absolute() for file in options.configfile)], root)
