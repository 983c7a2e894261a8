"""The command ``nuclass split``: one slide into train, validation and test."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nuclass.cli_common import add_command, add_settings, settings_of

_ABOUT = """\
Divide one slide into train, validation and test so that no window sees two of them.
Reads cells.parquet (cell_id, x_px, y_px, and given_split where the slide came with its own) and
labels.parquet (cell_id, class, status). Writes split.parquet (cell_id, split: train, val, test or buffer),
split.json (layout, cuts, counts, absent classes, px between windows of different splits) and split.png.

How it is cut stands under 'splits' in the settings; a file of your own says what is to differ, such as

  splits: {layout: blocks, block_um: 1000, val: 0.2, test: 0.1}   squares of 1 mm, balanced over the classes
  splits: {folds: 5, fold: 2, test: 0}                            k-fold: the second of five parts is validation
  protocol: {no_buffer: true}                                     the original's central box, without a buffer

docs/splits.md explains every key, and how to hold out slides, patients or organs.

examples:
  nuclass split --cells results/slides/ovary_1/cells.parquet \\
      --labels results/labels/ovary_1/labels.parquet --out work/split
  nuclass split --cells cells.parquet --labels labels.parquet --configfile folds.yaml --out work/fold_2
"""


def add_split(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the others."""
    parser = add_command(commands, "split", "Divide one slide into train, validation and test", _ABOUT)
    parser.add_argument("--cells", type=Path, required=True, metavar="FILE", help="cells.parquet of the slide")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="labels.parquet of the slide")
    parser.add_argument("--role", choices=("train", "cohort"), default="train", help="a cohort is all test")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the results")
    add_settings(parser, "splits (with windows, mpp and protocol)")
    parser.set_defaults(run=_split)


def _split(options: argparse.Namespace) -> None:
    from nuclass.core.errors import UserError
    from nuclass.core.files import write_json, write_parquet
    from nuclass.splits import SplitConfig, read_cells, read_labels, split_cells
    from nuclass.splits.picture import draw_split

    for name in ("cells", "labels"):
        if not getattr(options, name).is_file():
            raise UserError(
                f"--{name} names no file", where=getattr(options, name), expected=f"{name}.parquet of a slide"
            )
    config = SplitConfig.from_config(settings_of(options))
    cells = read_cells(options.cells)
    labels = read_labels(options.labels)
    split = split_cells(cells, labels, config, options.role, options.cells.absolute().parent.name)
    write_parquet(options.out / "split.parquet", split.frame)
    write_json(options.out / "split.json", split.report)
    picture = options.out / "split.png"
    draw_split(picture, cells, split.frame["split"], split.report, config.window_px, config.mpp)
    counts = ", ".join(f"{name} {count:,}" for name, count in split.report["labelled"].items())
    sys.stdout.write(f"Wrote {options.out}: layout {split.report['layout']}; labelled cells: {counts}.\n")
