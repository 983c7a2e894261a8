"""The command ``nuclass import-checkpoint``: models of the original's release as checkpoints of this workflow."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nuclass.cli_common import add_command
from nuclass.core.errors import UserError
from nuclass.core.names import MODELS

_ABOUT = """\
Take in a checkpoint of the original's release (a Lightning checkpoint with state_dict and hyper_parameters).

Writes OUT/MODEL/best.ckpt, which everything else here reads; of a gate's file, which holds all three models, three
folders. The context backbone in it goes to OUT/context. Every tensor of the file is used or named as dropped; one that
is missing, left over or of another shape is an error. No code in the file is run.

The file may name its classes. If not, --classes must: a JSON list, a JSON object of name and number, or names with
commas between, in the order of the model's outputs. Of the 16 published classes the third is not known for certain
(Cardiomyocyte or Dendritic_Cell), so they are not guessed.

examples:
  nuclass import-checkpoint Path_local.ckpt --model local --classes class_names.json --out results/models
  nuclass import-checkpoint gate.ckpt --model gate --classes class_names.json --out imported
  NUCLASS_CHECKPOINT_ROOT=imported nuclass train gate --dry-run
"""


def add_import_checkpoint(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the others."""
    parser = add_command(commands, "import-checkpoint", "Take in a checkpoint of the original's release", _ABOUT)
    parser.add_argument("file", type=Path, help="the checkpoint")
    parser.add_argument("--model", choices=MODELS, required=True, help="which model it is of")
    parser.add_argument("--classes", metavar="NAMES", help="classes: a JSON file, or names with commas between")
    parser.add_argument(
        "--organs",
        metavar="NAMES",
        help="organs in the order of the embedding's rows: a JSON file, or names with commas between "
        "(default: the eight of the original's inference scripts)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the models' folders")
    parser.add_argument(
        "--alpha-reset",
        action="store_true",
        help="weigh the context by 0.25, as the original does after loading a global model for training; else by 1",
    )
    parser.add_argument(
        "--by-shape", action="store_true", help="accept parts that only their shape tells, after a look at their list"
    )
    parser.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> None:
    from nuclass.training.import_checkpoint import import_checkpoint

    told = import_checkpoint(
        options.file,
        options.model,
        options.out,
        classes=_names(options.classes, "--classes"),
        organs=_names(options.organs, "--organs"),
        alpha_reset=options.alpha_reset,
        by_shape=options.by_shape,
    )
    sys.stdout.write("\n".join(told) + "\n")


def _names(given: str | None, option: str) -> list[str] | None:
    """Return names from a JSON file (a list, or an object of name and number) or a list with commas."""
    import json

    if given is None:
        return None
    file = Path(given)
    if file.suffix != ".json":
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{option} names no file", where=file) from error
    except ValueError as error:
        raise UserError("A file is not JSON", where=file, found=str(error)) from error
    if isinstance(data, dict) and sorted(map(str, data.values())) == sorted(map(str, range(len(data)))):
        return sorted(data, key=lambda name: int(data[name]))
    if isinstance(data, list) and all(isinstance(name, str) for name in data):
        return data
    raise UserError(
        f"{option} is neither a list of names nor names with their numbers",
        where=file,
        found=str(data)[:80],
        expected='["Acinar", "B_Cell", ...] or {"Acinar": 0, "B_Cell": 1, ...}, numbers from 0 without a gap',
    )
