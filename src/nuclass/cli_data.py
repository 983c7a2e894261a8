"""The command ``nuclass fetch``: public datasets, listed or brought to this disk."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.cli_common import add_command, add_settings, settings_of, study_file

if TYPE_CHECKING:
    from nuclass.xenium.registry import Dataset

_REGISTRY = Path("resources/datasets.tsv")
_ABOUT = """\
Bring what the study needs of a public dataset: some members of its outs.zip, the H&E image, the alignment.
What is there and verified is not asked for again; a broken download goes on where it stopped.
Reads resources/datasets.tsv and resources/dataset_files.tsv; writes the files and bundle.json, which lists them.

examples:
  nuclass fetch --list
  nuclass fetch Xenium_V1_hKidney_cancer_section --out resources/bundles/kidney_1
"""


def add_fetch(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the others."""
    parser = add_command(commands, "fetch", "Bring what the study needs of a public dataset", _ABOUT)
    parser.add_argument("dataset", nargs="?", help="name of the dataset; --list shows the names")
    parser.add_argument("--out", type=Path, help="folder for the files")
    parser.add_argument(
        "--image", action="store_true", help="also the DAPI image in focus (gigabytes), for registration"
    )
    parser.add_argument("--register", action="store_true", help="do without an alignment; the image is then brought")
    parser.add_argument("--list", action="store_true", help="list the datasets and stop")
    parser.add_argument("--registry", type=Path, default=_REGISTRY, help="table of datasets (default: %(default)s)")
    add_settings(parser, "fetch")
    parser.set_defaults(run=_fetch)


def _fetch(options: argparse.Namespace) -> None:
    from nuclass.core.errors import UserError
    from nuclass.xenium.fetch import fetch_slide
    from nuclass.xenium.registry import dataset_named, read_registry
    from nuclass.xenium.remote import HttpSettings

    registry = read_registry(study_file(options.registry))
    if options.list:
        _list(registry)
        return
    if not options.dataset or options.out is None:
        raise UserError(
            "No dataset is named" if not options.dataset else "No folder is named",
            where="nuclass fetch",
            expected="nuclass fetch DATASET --out FOLDER, or nuclass fetch --list",
        )
    dataset = dataset_named(registry, options.dataset, options.registry)
    section = settings_of(options)["fetch"]
    row = {"slide": dataset.name, "source": "dataset", "dataset": dataset.name}
    fetch_slide(
        row | ({"align": "register"} if options.register else {}),
        options.out,
        registry,
        image=options.image or options.register,
        settings=HttpSettings.from_config(section),
        offline=section["offline"],
    )
    sys.stdout.write(f"Wrote {options.out}.\n")


def _list(registry: dict[str, Dataset]) -> None:
    for dataset in registry.values():
        lacks = [kind for kind in ("he", "alignment") if not dataset.file(kind).addresses]
        note = f"; no address of {' and '.join(lacks)}" if lacks else ""
        facts = (
            f"{dataset.organ}, analysis {dataset.xoa_version}; {dataset.role}; outs.zip: {dataset.file('outs').size}"
        )
        sys.stdout.write(f"{dataset.name}\n  {facts}{note}\n")
