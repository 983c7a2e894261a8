"""The commands on files of windows: write a slide's, take in a data set of others, check one."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.cli_common import BASE, add_command, add_settings, settings_of, study_file

if TYPE_CHECKING:
    from nuclass.xenium.checks import Check

_ABOUT = """\
Windows of cells as three files, for programs that read those of the original: patches_224x224.h5,
patches_1024x1024.h5 and annotations.json. This study itself reads windows from the slide. docs/patches.md has more.

examples:
  nuclass patches export --slide ovary_1 --out handover/ovary_1
  nuclass patches verify handover/ovary_1 --slide ovary_1
  nuclass patches import /data/Ovarian_wsi --slide ovary_wsi
  nuclass patches export --help
"""
_EXPORT = """\
Write the labelled cells of a slide as three files of windows and annotations.
Needs about 3 MB a cell; with --virtual a copy of the slide and about 1 kB a cell, up to 100,000 cells.

examples:
  nuclass patches export --slide ovary_1 --out handover/ovary_1
  nuclass patches export --slide ovary_1 --out handover/ovary_1 --split --layout per_key
  nuclass patches export --slide ovary_1 --out handover/ovary_1 --virtual
  nuclass patches export --store he.ome.zarr --cells cells.parquet --labels labels.parquet \\
      --name mine --organ ovary --patient donor_7 --out handover/mine
"""
_IMPORT = """\
Check a data set of three files (in one folder, or in train/ and test/ below it) and write what a study needs of it:
cells.parquet, patches.json and patches.parquet to RESULTS/slides/SLIDE, labels.parquet and summary.json to
RESULTS/labels/SLIDE. No pixel is copied. A study does this by itself for slides with source 'patches'; the command
shows beforehand whether a data set can be used.

example:
  nuclass patches import /data/Ovarian_wsi --slide ovary_wsi --results work/try
"""
_VERIFY = """\
Check a data set of three files: ids, sizes, types, fields, scale, black and double windows; and its pixels against the
slide they were cut from or against another data set. Each rule gets a line: PASS, WARN, FAIL or SKIPPED.
Ends with status 1 if one fails.

examples:
  nuclass patches verify handover/ovary_1
  nuclass patches verify handover/ovary_1 --slide ovary_1 --sample 0
  nuclass patches verify handover/ovary_1 --against /data/Ovarian_wsi
"""


def add_patches(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``nuclass patches`` with its three commands."""
    parser = add_command(commands, "patches", "Files of windows: export, import, verify", _ABOUT)
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_export(inner)
    _add_import(inner)
    _add_verify(inner)


def _add_export(commands: argparse._SubParsersAction[Any]) -> None:
    parser = add_command(commands, "export", "Write a slide's windows as three files", _EXPORT)
    _add_slide(parser)
    parser.add_argument("--labels", type=Path, metavar="FILE", help="labels.parquet (default: that of --slide)")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the files")
    parser.add_argument("--split", action="store_true", help="write train to train/ and val to test/, and no others")
    parser.add_argument("--splits", type=Path, metavar="FILE", help="table of the split (default: that of --slide)")
    parser.add_argument("--name", help="slide_id of the annotations (default: --slide)")
    parser.add_argument("--organ", help="tissue_type of the annotations (default: as in the sheet)")
    parser.add_argument("--patient", help="patient_id of the annotations (default: as in the sheet)")
    parser.add_argument(
        "--layout",
        choices=("merged", "per_key"),
        default="merged",
        help="one dataset of all windows, or one a cell (default: %(default)s)",
    )
    parser.add_argument(
        "--compression", choices=("lzf", "gzip", "none"), default="lzf", help="of the windows (default: %(default)s)"
    )
    parser.add_argument(
        "--class-names",
        choices=("original", "study"),
        default="original",
        help="class_id of the annotations: names that the original maps to the classes (it drops cells named "
        "T_Cell or Epithelial_Malignant), or the classes' own (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="windows compressed at a time (default: all cores)"
    )
    parser.add_argument("--virtual", action="store_true", help="keep the slide once and let the windows point into it")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in the folder")
    add_settings(parser)
    parser.set_defaults(run=_export)


def _add_import(commands: argparse._SubParsersAction[Any]) -> None:
    parser = add_command(commands, "import", "Check a data set of three files and list its cells", _IMPORT)
    parser.add_argument("folder", type=Path, help="folder of the three files, or of train/ and test/ with them")
    parser.add_argument("--slide", required=True, help="name of the slide in this study")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder to write to (default: results)")
    add_settings(parser)
    parser.set_defaults(run=_import)


def _add_verify(commands: argparse._SubParsersAction[Any]) -> None:
    parser = add_command(commands, "verify", "Check a data set of three files, and its pixels", _VERIFY)
    parser.add_argument("folder", type=Path, help="folder of the three files, or of train/ and test/ with them")
    _add_slide(parser)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another data set, to be the same")
    parser.add_argument(
        "--sample", type=int, default=1000, help="cells whose pixels are looked at, 0 for all (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    add_settings(parser)
    parser.set_defaults(run=_verify)


def _add_slide(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slide", help="name of a slide whose results are in --results")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results of the study (default: results)")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="he.ome.zarr (default: that of --slide)")
    parser.add_argument("--cells", type=Path, metavar="FILE", help="cells.parquet (default: that of --slide)")


def _export(options: argparse.Namespace) -> None:
    from nuclass.patches.export import export_patches
    from nuclass.slides.store import SlideStore

    settings = settings_of(options)
    paths = _paths(options, ["store", "cells", "labels", *(["splits"] if options.split or options.splits else [])])
    with SlideStore(paths["store"]) as store:
        done = export_patches(
            store,
            _table(paths["cells"], "cell_id", "x_um", "y_um", "x_px", "y_px"),
            _table(paths["labels"], "cell_id", "class", "status"),
            options.out,
            settings["windows"],
            **_described(options, settings),
            mpp=settings["mpp"],
            layout=options.layout,
            compression=options.compression,
            class_names=options.class_names,
            virtual=options.virtual,
            splits=_table(paths["splits"], "cell_id", "split") if "splits" in paths else None,
            replace=options.overwrite,
            threads=max(options.threads, 1),
        )
    counts = ", ".join(f"{number} cells" + (f" in {name}/" if name else "") for name, number in done.cells.items())
    sys.stdout.write(f"Wrote {done.folder}: {counts}.\n")


def _import(options: argparse.Namespace) -> None:
    from nuclass.core.errors import UserError
    from nuclass.labels.named import label_named_cells
    from nuclass.patches.importing import import_patches

    settings = settings_of(options)
    slides, labels = (options.results / kind / options.slide for kind in ("slides", "labels"))
    cells = slides / "cells.parquet"
    store = slides / "he.ome.zarr"
    if store.exists():
        raise UserError(
            "There are results of a slide with an H&E image under this name",
            where=store,
            expected="a slide without results, or one of patch files",
            fix="choose another --slide or --results; the cells of that slide would be lost",
        )
    frame = import_patches(
        folder=options.folder,
        cells=cells,
        manifest=slides / "patches.json",
        windows=settings["windows"],
        mpp=settings["mpp"],
        slide=options.slide,
    )
    named = label_named_cells(cells=cells, ontology=study_file(settings["ontology"]), out=labels, name=options.slide)
    known = int((named["class"].fillna("") != "").sum())
    sys.stdout.write(f"Wrote {slides} and {labels}: {len(frame)} cells, {known} with a class.\n")


def _verify(options: argparse.Namespace) -> None:
    from nuclass.core.errors import UserError
    from nuclass.patches.stale import check_store_fits
    from nuclass.patches.verify import verify_patches
    from nuclass.slides.store import SlideStore

    if options.sample < 0:
        raise UserError("--sample is negative", found=options.sample, expected="0 for all cells, or a number of cells")
    settings = settings_of(options)
    store = cells = None
    if options.slide or options.store or options.cells:
        paths = _paths(options, ["store", "cells"])
        store, cells = SlideStore(paths["store"]), _table(paths["cells"], "cell_id", "x_px", "y_px")
        check_store_fits(store, cells, settings["mpp"], settings["windows"]["local"] / 2)
    checks = verify_patches(
        options.folder,
        settings["windows"],
        settings["mpp"],
        store=store,
        cells=cells,
        against=options.against,
        sample=options.sample,
        seed=options.seed,
    )
    _tell(options.folder, checks)


def _tell(folder: Path, checks: list[Check]) -> None:
    """Write the checks, and end as a mistake if one failed."""
    from nuclass.core.errors import UserError
    from nuclass.xenium.checks import format_checks

    sys.stdout.write("\n".join([str(folder), *format_checks(checks)]) + "\n")
    failed = [check.name for check in checks if check.verdict == "fail"]
    if failed:
        raise UserError(f"{len(failed)} rules do not hold in the data set", where=folder, found=", ".join(failed))


def _paths(options: argparse.Namespace, wanted: list[str]) -> dict[str, Path]:
    """Return the paths a command needs: those given, the others from the results of ``--slide``."""
    from nuclass.core.errors import UserError

    slide, results = options.slide, options.results
    known = {
        "store": results / "slides" / str(slide) / "he.ome.zarr",
        "cells": results / "slides" / str(slide) / "cells.parquet",
        "labels": results / "labels" / str(slide) / "labels.parquet",
        "splits": results / "splits" / f"{slide}.parquet",
    }
    lacking = [f"--{name}" for name in wanted if getattr(options, name) is None]
    if lacking and not slide:
        raise UserError(
            "It is not said which slide",
            where=f"nuclass patches {'export' if 'labels' in wanted else 'verify'}",
            found=f"no --slide, and no {', '.join(lacking)}",
            expected="--slide NAME, whose results are in --results; or all of these paths",
        )
    paths = {name: getattr(options, name) or known[name] for name in wanted}
    manifest = results / "slides" / str(slide) / "patches.json"
    if paths["store"] == known["store"] and not known["store"].exists() and manifest.is_file():
        raise UserError(
            "The slide came as patch files; there is no picture of it to cut windows from",
            where=manifest,
            fix="take the files themselves; nuclass patches verify FOLDER --against OTHER compares two data sets",
        )
    return paths


def _table(path: Path, *columns: str) -> Any:
    """Read a table and check that it has these columns."""
    import pandas as pd

    from nuclass.core.errors import UserError

    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise UserError("A table is missing", where=path, fix="check the path, or make it with snakemake") from error
    except (OSError, ValueError) as error:
        raise UserError("A table cannot be read", where=path, found=str(error), expected="Parquet") from error
    lacking = [column for column in columns if column not in frame]
    if lacking:
        raise UserError("A table lacks columns", where=path, found=f"no {', '.join(lacking)}")
    return frame


def _described(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, str]:
    """Return name, organ and donor: as given, else as the study's sheet says."""
    from nuclass.core.config import SCHEMAS
    from nuclass.core.errors import UserError
    from nuclass.core.schema import read_yaml
    from nuclass.core.sheets import read_sheet

    row: dict[str, str] = {}
    if options.slide and BASE.is_file():
        columns = read_yaml(study_file(str(SCHEMAS)) / "slides.schema.yaml")
        rows, _ = read_sheet(settings["slides"], list(columns["properties"]), list(columns["required"]))
        row = next((row.values for row in rows if row.values["slide"] == options.slide), {})
    told = {
        "slide": options.name or options.slide,
        "organ": options.organ or row.get("organ"),
        "patient": options.patient or row.get("patient"),
    }
    lacking = [f"--{'name' if key == 'slide' else key}" for key, value in told.items() if not value]
    if lacking:
        raise UserError(
            "The annotations need the slide's name, organ and donor",
            where=settings["slides"] if options.slide else "nuclass patches export",
            found=f"no {', '.join(lacking)}" + (f"; no slide '{options.slide}' in the sheet" if options.slide else ""),
            fix="give them on the command line",
        )
    return {key: str(value) for key, value in told.items()}
