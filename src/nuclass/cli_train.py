"""The command ``nuclass train``: one of the three models, without Snakemake, to the same result."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.cli_common import BASE, add_command, add_settings, settings_of
from nuclass.core.log import get_logger
from nuclass.core.names import GATE, GLOBAL, LOCAL
from nuclass.core.own_files import home
from nuclass.core.patch_rows import DATA_DIRS, DATA_ROOT

if TYPE_CHECKING:
    from nuclass.training.config import Context
    from nuclass.training.preparing import Place
    from nuclass.training.resolve import Settings

_log = get_logger(__name__)
CHECKPOINT_ROOT, RESULTS_ROOT = "NUCLASS_CHECKPOINT_ROOT", "NUCLASS_RESULTS_ROOT"
_NEEDS: dict[str, tuple[str, ...]] = {LOCAL: (), GLOBAL: (LOCAL,), GATE: (LOCAL, GLOBAL)}
_WHAT = {
    LOCAL: "the cell in its 56 um window, and the organ",
    GLOBAL: "the cell and its 256 um neighbourhood; after local",
    GATE: "the weight between the two, cell by cell; after both",
}
_ABOUT = """\
Train one of the three models: local, then global, then gate. Each is also a rule of the workflow, which gives the same
files; this command is for a model by itself, for other settings, and for a queue of your own.

A run that was stopped or killed, at any moment, goes on when the same command is given again.

examples:
  nuclass train local --config config/models/path_local.yaml
  nuclass train local --config config/models/path_local.yaml -o max_epochs=20 -o 'trainer.devices=[0,1]'
  nuclass train global --print-config
  nuclass train gate --dry-run
  nuclass train local --help
"""
_MODEL = """\
Train the {model} model: {what}.
Writes best.ckpt, metrics.json, history.csv and calibration.json.

Cells come from the study in this folder (config/, results/). Or from data sets of patch files, which are taken in and
divided first: NUCLASS_DATA_DIRS names their folders, NUCLASS_DATA_ROOT the folder around them.{needs}

Settings come from the model file of the study, --config instead of it, and -o on top. A key of -o is a full path, or
the end of one where only one setting ends so; its value is YAML.

examples:
  nuclass train {model} --config config/models/path_{model}.yaml
{examples}  nuclass train {model} --print-config > mine.yaml; nuclass train {model} --config mine.yaml

environment:
  NUCLASS_DATA_DIRS        folders of data sets, separated by '{separator}'; they stand for the training slides
  NUCLASS_DATA_ROOT        folder of data sets, where NUCLASS_DATA_DIRS is not set
  NUCLASS_RESULTS_ROOT     results of the study (default: results)
  NUCLASS_CHECKPOINT_ROOT  trained models, one folder each (default: models in the results)
  NUCLASS_BACKBONES        folder with the weights of backbones, at <owner>/<name>/
"""
_NEEDED = {
    LOCAL: "",
    GLOBAL: "\nNeeds the checkpoint of the local model. Missing features of neighbourhoods are computed first.",
    GATE: "\nNeeds the checkpoints of the local and the global model.",
}
_EXAMPLES = {
    LOCAL: "  nuclass train local -o max_epochs=20 -o optimizer.lr_head=1e-4 -o 'trainer.devices=[0,1]'\n"
    "  NUCLASS_DATA_ROOT=/data/patches nuclass train local --configfile config/paper.yaml\n",
    GLOBAL: "  nuclass train global -o context.batch_size=32 -o protocol.label_in_gate=true\n",
    GATE: "  nuclass train gate -o joint.max_epochs=3 --out work/joint\n",
}


def add_train(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``nuclass train`` with its three models."""
    parser = add_command(commands, "train", "Train the local model, the global model, or the gate", _ABOUT)
    inner = parser.add_subparsers(title="models", metavar="MODEL", required=True)
    for model, what in _WHAT.items():
        about = _MODEL.format(
            model=model, what=what, needs=_NEEDED[model], examples=_EXAMPLES[model], separator=os.pathsep
        )
        _add_model(add_command(inner, model, what, about), model)


def _add_model(parser: argparse.ArgumentParser, model: str) -> None:
    parser.set_defaults(run=_train, model=model)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"settings: a file of the section '{model}', or a whole model file (default: the study's model file)",
    )
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting; may be given several times",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same as -o seed=N")
    for needed in _NEEDS[model]:
        parser.add_argument(
            f"--{needed}",
            dest=f"{needed}_checkpoint",
            type=Path,
            metavar="CKPT",
            help=f"best.ckpt of the {needed} model (default: {needed}/best.ckpt of the trained models)",
        )
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder to write to (default: {model} there)")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder of the running state and the logs (default: in work/; with --out in DIR/work)",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print all settings, each with where it came from, and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="tell what would be done, and stop")
    add_settings(parser)


@dataclass(frozen=True)
class _Run:
    """A training with all its places."""

    settings: Settings
    place: Place
    checkpoints: dict[str, Path]
    out: Path
    work: Path


def _train(options: argparse.Namespace) -> None:
    settings = _settings(options)
    if options.print_config:
        sys.stdout.write(settings.render())
        return
    run = _run_of(options, settings)
    if options.dry_run:
        sys.stdout.write(_plan(run))
        return
    from nuclass.training.interruption import StoppedError

    try:
        metrics = _carry_out(run)
    except StoppedError as stopped:
        sys.stderr.write(f"{stopped}\n")
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped; the same command goes on from what is there.") from None
    if metrics:
        sys.stdout.write(_told(run.out, metrics))


def _root() -> Path:
    """Return the folder of the study: this one, or else the repository that the library lies in."""
    return Path() if BASE.is_file() else home()


def _settings(options: argparse.Namespace) -> Settings:
    from nuclass.core.protocol import parse_protocol
    from nuclass.training.resolve import resolve

    study = settings_of(options)
    overrides = list(options.override)
    if options.seed is not None:
        overrides.append(f"{options.model}.seed={options.seed}")
    return resolve(
        options.model,
        _root() / study["models"],
        protocol=parse_protocol(study["protocol"]),
        file=options.config,
        overrides=overrides,
    )


def _run_of(options: argparse.Namespace, settings: Settings) -> _Run:
    place = _place(options)
    models = Path(os.environ.get(CHECKPOINT_ROOT) or place.results / "models").expanduser()
    model = options.model
    given = {name: getattr(options, f"{name}_checkpoint") for name in _NEEDS[model]}
    checkpoints = {name: path or models / name / "best.ckpt" for name, path in given.items()}
    out = options.out or models / model
    work = options.work or (out / "work" if options.out else place.work / "models" / model)
    return _Run(settings, place, checkpoints, out, work)


def _place(options: argparse.Namespace) -> Place:
    from nuclass.core.config import load_study, merge_files
    from nuclass.patches.annotations import peek_annotations
    from nuclass.training.preparing import Place

    root = _root()
    if root != Path():
        _absolute_data()
    files = [BASE, *(file.absolute() for file in options.configfile)]
    study = load_study(merge_files(files, root), root, files, peek_patches=peek_annotations)
    given = os.environ.get(RESULTS_ROOT)
    results = Path(given).expanduser() if given else Path("results")
    return Place(
        study.config,
        study.slides.loc[study.train_slides],
        root,
        results,
        results / "work" if given else Path("work"),
    )


def _absolute_data() -> None:
    """Let relative folders of data sets start from this folder, also where the study lies in another."""
    dirs, base = os.environ.get(DATA_DIRS), os.environ.get(DATA_ROOT)
    if dirs:
        parts = [part.strip() for part in dirs.split(os.pathsep) if part.strip()]
        os.environ[DATA_DIRS] = os.pathsep.join(str(Path(part).expanduser().absolute()) for part in parts)
    if base:
        os.environ[DATA_ROOT] = str(Path(base).expanduser().absolute())


def _plan(run: _Run) -> str:
    from nuclass.training.preparing import features_to_make, need_checkpoints, need_writable, unprepared

    model, place = run.settings.model, run.place
    need_checkpoints(run.checkpoints, model)
    need_writable(place.results, run.out, run.work)
    slides = [f"{slide} ({organ})" for slide, organ in place.slides["organ"].items()]
    lines = [f"Training the {model} model on {len(slides)} slides: {', '.join(slides)}."]
    taken = unprepared(place)
    if taken:
        lines.append(f"  first   taken in from patch files and divided: {', '.join(taken)}")
    if model != LOCAL:
        context, folder = _context(run)
        missing = features_to_make(place, context, run.settings.typed.protocol, folder, for_gate=model == GATE)
        if missing:
            lines.append(f"  first   features of neighbourhoods: {', '.join(map(str, missing))}")
    lines += [f"  from    {path}" for path in run.checkpoints.values()]
    going_on = (run.work / "last.ckpt").is_file()
    lines.append(
        f"  work    {run.work}" + (" (a state is there, to go on from where nothing changed)" if going_on else "")
    )
    lines.append(f"  output  {run.out}" + (" (will be replaced)" if (run.out / "best.ckpt").is_file() else ""))
    return "\n".join(lines) + "\n"


def _context(run: _Run) -> tuple[Context, Path | None]:
    """Return the settings of the context, and its backbone's folder where known: the gate's are those of its parent."""
    from nuclass.training.preparing import context_of

    return (run.settings.typed.context, None) if GLOBAL not in run.checkpoints else context_of(run.checkpoints[GLOBAL])


def _prepare_context(run: _Run) -> Path | None:
    from nuclass.training.preparing import prepare_context

    context, folder = _context(run)
    typed = run.settings.typed
    for_gate = run.settings.model == GATE
    return prepare_context(run.place, context, typed.protocol, typed.global_.seed, folder, for_gate=for_gate)


def _carry_out(run: _Run) -> dict[str, Any]:
    """Prepare what is missing and train; returns the metrics."""
    from nuclass.training.preparing import need_checkpoints, need_writable, prepare_slides

    settings, place = run.settings, run.place
    model = settings.model
    need_checkpoints(run.checkpoints, model)
    need_writable(place.results, run.out, run.work)
    prepare_slides(place)
    folder = _prepare_context(run) if model != LOCAL else None
    study = place.study()
    if model == LOCAL:
        from nuclass.training.train import train_local

        return train_local(settings.sections(), study, run.out, run.work, settings.typed.local.seed)
    if model == GLOBAL:
        from nuclass.training.train import train_global

        return train_global(
            settings.sections(),
            study,
            run.checkpoints[LOCAL],
            run.out,
            run.work,
            settings.typed.global_.seed,
            folder,
        )
    from nuclass.training.gate import train_gate

    return train_gate(
        settings.sections(),
        study,
        run.checkpoints[LOCAL],
        run.checkpoints[GLOBAL],
        run.out,
        run.work,
        settings.typed.gate.seed,
    )


def _told(out: Path, metrics: dict[str, Any]) -> str:
    from nuclass.core.progress import readable_seconds

    scores = ", ".join(f"{name} {value:.3f}" for name, value in metrics["val"].items() if isinstance(value, float))
    return (
        f"Wrote {out}: on val {scores}; best in epoch {metrics['best'].get('epoch')}, "
        f"{metrics['epochs']} validations in {readable_seconds(metrics['seconds'])}.\n"
    )
