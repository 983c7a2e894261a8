"""The command ``nuclass evaluate``: models on data sets of a list, as the original's inference scripts, or tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.cli_common import BASE, add_command, add_settings, settings_of, study_file
from nuclass.core.names import GATE, GLOBAL, LOCAL

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.evaluation.cohort import Rules

_WHAT = {
    LOCAL: "the local model on data sets of a list",
    GLOBAL: "the global model on data sets of a list",
    GATE: "the gate, and beside it the local and the global model, on data sets of a list",
}
_ABOUT = """\
Evaluate trained models on data sets that they have not seen. No Snakemake, no study: a checkpoint and a list.

examples:
  nuclass evaluate local --ckpt results/models/local/best.ckpt --holdouts holdouts.json --output-dir out
  nuclass evaluate global --ckpt results/models/global/best.ckpt --holdouts holdouts.json --output-dir out
  nuclass evaluate gate --ckpt results/models/gate/best.ckpt --holdouts holdouts.json --output-dir out --select ovary
  nuclass evaluate tables results/predictions/gate/ovary_h.parquet --model gate --cohort ovary_h --out out
  nuclass evaluate gate --help
"""
_MODEL = """\
Evaluate {what}.

The list is JSON, name -> root, mode and tissue (or a list of these with a name each):

  {{
    "ovary": {{"root": "/data/ovary_holdout", "mode": "xenium_exact", "tissue": "ovary"}},
    "lung":  {{"root": "results/slides/lung_h", "mode": "xenium_exact", "tissue": "lung"}}
  }}

root    folder with annotations.json, patches_224x224.h5 and patches_1024x1024.h5, be it train/ or test/ of a data set;
        or a slide's folder in the results of this workflow
mode    xenium_exact
tissue  an organ of the model, or unknown

Labels are the annotations' class_id, else label, cell_type, type or annotation. They become classes by the study's
table (key ontology): one for all models, so that all evaluate the same cells. Labels that it does not know are listed
with their cells. Cells that the model learnt from, their slides and their patients are refused.
{needs}
Writes to DIR/NAME/MODEL: predictions.parquet and .h5, metrics.json (open set: all classes of the model; closed set:
those that occur, as the original does; 95 % intervals), per_class.csv, confusion.csv and .png, reliability.csv and
other tables, and the arrays embeddings, logits, probs, labels, preds, cell_ids as .npy. Then one table of all data sets
to DIR/summary_{model}.csv and .json.
A run that was stopped goes on when the same command is given again; what is there and unchanged is not computed anew.
DIR/.work holds cells, context features and the running state; it may be deleted.

examples:
  nuclass evaluate {model} --ckpt results/models/{model}/best.ckpt --holdouts holdouts.json --output-dir out
  nuclass evaluate {model} --ckpt best.ckpt --holdouts holdouts.json --output-dir out --select ovary lung --device cpu
"""
_NEEDS = {
    LOCAL: "",
    GLOBAL: "\nFeatures of neighbourhoods are computed first, with the backbone that the model was trained with.\n",
    GATE: "\nThe gate weighs the local and the global model that it was trained on: --local and --global, else\n"
    "../local/best.ckpt and ../global/best.ckpt beside its own folder. Probabilities of the three lie in\n"
    "DIR/NAME/local, DIR/NAME/global and DIR/NAME/gate (the original's A, B and mix); gates.npy is the weight.\n",
}
_TABLES = """\
Judge one model's prediction tables, as the rule predict writes them: metrics, per-class numbers, confusion, arrays.
With --checkpoint it stops if the model has seen a cell that it is judged on.

example:
  nuclass evaluate tables results/predictions/gate/ovary_h.parquet --model gate --cohort ovary_h --out out
"""


def add_evaluate(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``nuclass evaluate`` with its three models, and ``tables``."""
    parser = add_command(commands, "evaluate", "Evaluate models on data sets of a list, or their predictions", _ABOUT)
    inner = parser.add_subparsers(title="what to evaluate", metavar="MODEL", required=True)
    for model, what in _WHAT.items():
        _add_model(add_command(inner, model, what, _MODEL.format(model=model, what=what, needs=_NEEDS[model])), model)
    _add_tables(add_command(inner, "tables", "prediction tables of one model", _TABLES))


def _add_model(parser: argparse.ArgumentParser, model: str) -> None:
    parser.set_defaults(run=_evaluate, model=model)
    parser.add_argument("--ckpt", type=Path, required=True, metavar="CKPT", help=f"best.ckpt of the {model} model")
    if model == GATE:
        for needed in (LOCAL, GLOBAL):
            parser.add_argument(
                f"--{needed}",
                dest=f"{needed}_checkpoint",
                type=Path,
                metavar="CKPT",
                help=f"best.ckpt of the {needed} model (default: ../{needed}/best.ckpt beside the gate's folder)",
            )
    parser.add_argument(
        "--holdouts",
        "--holdouts-config",
        type=Path,
        required=True,
        metavar="JSON",
        help="the list of data sets (--holdouts-config is the same)",
    )
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--select", nargs="+", default=[], metavar="NAME", help="data sets of the list (default: all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    parser.add_argument("--batch", type=_count, metavar="N", help="cells at once (default: 256)")
    add_settings(parser)


def _count(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of cells; expected a whole number from 1")
    return value


def _add_tables(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_tables)
    parser.add_argument("predictions", type=Path, nargs="+", help="prediction tables, the .h5 beside each")
    parser.add_argument("--model", required=True, help="name of the model, for the record")
    parser.add_argument("--cohort", required=True, help="name of the cohort, for the record")
    parser.add_argument("--checkpoint", type=Path, help="the model's best.ckpt")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    add_settings(parser)


def _tables(options: argparse.Namespace) -> None:
    from nuclass.evaluation.cohort import evaluate_model

    evaluate_model(
        options.predictions,
        options.out,
        model=options.model,
        cohort=options.cohort,
        checkpoint=options.checkpoint,
        rules=_rules(settings_of(options)),
    )
    sys.stdout.write(f"Wrote {options.out}.\n")


def _rules(settings: dict[str, Any]) -> Rules:
    """Return how numbers are made, as the configuration says it."""
    from nuclass.core.protocol import parse_protocol
    from nuclass.evaluation.cohort import Rules

    return Rules.of(settings["evaluation"], closed_set=parse_protocol(settings["protocol"]).closed_set)


def _evaluate(options: argparse.Namespace) -> None:
    from nuclass.core.protocol import parse_protocol, switches_of
    from nuclass.evaluation.holdout_run import Checkpoints, Options, evaluate_holdouts, find_checkpoints
    from nuclass.evaluation.holdouts import read_holdouts

    settings = settings_of(options)
    given = {name: getattr(options, f"{name}_checkpoint", None) for name in (LOCAL, GLOBAL)}
    checkpoints = Checkpoints(find_checkpoints(options.ckpt, options.model, given))
    first = checkpoints.first
    holdouts = read_holdouts(
        options.holdouts, organs=first["organs"], windows=checkpoints.windows, select=options.select
    )
    how = Options(
        ontology=study_file(settings["ontology"]),
        device=options.device,
        batch=options.batch,
        protocol=switches_of(parse_protocol(settings["protocol"]), "predict"),
        rules=_rules(settings),
        cache_mb=settings["slide_store"]["cache_mb"],
        patients=_patients(settings),
    )
    try:
        table = evaluate_holdouts(checkpoints, holdouts, options.output_dir, how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped; the same command goes on from what is there.") from None
    for row in table.itertuples():
        _draw(options.output_dir, str(row.holdout), str(row.model))
    sys.stdout.write(_told(table, options.output_dir, options.model))


def _draw(out: Path, holdout: str, model: str) -> None:
    """Draw a confusion matrix, where there is none of these results yet."""
    from nuclass.evaluation.cohort import CONFUSION
    from nuclass.figures.confusion import draw_one_confusion

    table, picture = out / holdout / model / CONFUSION, out / holdout / model / "confusion.png"
    if picture.is_file() and picture.stat().st_mtime_ns >= table.stat().st_mtime_ns:
        return
    files = {"classes": "resources/classes.tsv", "style": "resources/style/nuclass.mplstyle"}
    draw_one_confusion(
        table, picture, model=model, cohort=holdout, **{name: study_file(path) for name, path in files.items()}
    )


def _patients(settings: dict[str, Any]) -> dict[str, str]:
    """Return the patient of each training slide of the study in this folder; nothing outside of one."""
    from nuclass.core.config import SCHEMAS
    from nuclass.core.schema import read_yaml
    from nuclass.core.sheets import read_sheet

    if not BASE.is_file() or not Path(settings["slides"]).is_file():
        return {}
    columns = read_yaml(study_file(str(SCHEMAS)) / "slides.schema.yaml")
    rows, _ = read_sheet(settings["slides"], list(columns["properties"]), list(columns["required"]))
    return {row.values["slide"]: row.values["patient"] for row in rows if row.values.get("patient")}


def _told(table: pd.DataFrame, out: Path, model: str) -> str:
    """Return the summary as text."""
    shown = table.rename(columns={"macro_f1": "macro-F1", "closed_macro_f1": "closed", "weighted_f1": "weighted-F1"})
    shown = shown[
        ["holdout", "model", "organ", "evaluated", "cells", "accuracy", "macro-F1", "closed", "log_loss", "ece"]
    ]
    lines = shown.to_string(index=False, float_format=lambda value: f"{value:.3f}")
    return (
        f"{lines}\n\nmacro-F1: among all classes of the model; closed: among those that occur, as the original does.\n"
        f"Wrote {out / f'summary_{model}.csv'}, and what belongs to each data set to {out}/NAME/MODEL.\n"
    )
