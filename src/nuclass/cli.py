"""The ``nuclass`` command: configuration check, stages up to the splits, training, evaluation, without Snakemake."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import nuclass
from nuclass.cli_backbones import add_backbones
from nuclass.cli_common import BASE, add_command, add_debug, add_settings
from nuclass.cli_data import add_fetch
from nuclass.cli_doctor import add_doctor
from nuclass.cli_evaluate import add_evaluate
from nuclass.cli_import import add_import_checkpoint
from nuclass.cli_labels import add_label
from nuclass.cli_panel import add_panel
from nuclass.cli_patches import add_patches
from nuclass.cli_plan import add_plan
from nuclass.cli_predict import add_predict
from nuclass.cli_slides import add_align, add_build_slide, add_check_bundle
from nuclass.cli_splits import add_split
from nuclass.cli_train import add_train
from nuclass.core.errors import closest
from nuclass.core.failures import tell_error

_EXAMPLES = """\
examples:
  nuclass check                                  is the demo study's configuration sound?
  nuclass check --configfile config/mine.yaml    is mine?
  nuclass doctor                                 will it run on this machine?
  nuclass plan --configfile config/paper.yaml    what will a study cost?
  nuclass simulate ovary_1 --organ ovary --out work/simulated
  nuclass train local --print-config             the settings of a model, each with where it comes from
  nuclass evaluate gate --help                   trained models on data sets of your own
  nuclass predict --help                         the cells of your own slide, typed
  nuclass COMMAND --help                         what a command reads, writes and expects

The whole study, from bundles to the report, is one Snakemake command: snakemake --cores 2

exit status: 0 done, 1 an error that is told in words (or a FAIL of a check), 2 a command that is misspelt, 130 Ctrl-C,
143 SIGTERM and so on: 128 and the number of the signal that ended it
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for an error told in words, 130 after Ctrl-C."""
    from nuclass.core.log import configure

    options = _parser().parse_args(arguments)
    configure()
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        return tell_error(error, options.debug)
    return 0


class _Parser(argparse.ArgumentParser):
    """An argument parser that offers the nearest valid command for a misspelt one."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Tell what is wrong, and how to find out more."""
        if "invalid choice: '" in message:
            wrong = message.split("invalid choice: '", 1)[1].split("'", 1)[0]
            choices = message.rsplit("(choose from ", 1)[-1].rstrip(")").replace("'", "").split(", ")
            message = f"'{wrong}' is not known.{closest(wrong, choices)} Valid: {', '.join(choices)}"
        self.exit(2, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _parser() -> _Parser:
    parser = _Parser(
        prog="nuclass",
        description="Cell types from H&E, learnt from the transcripts of Xenium sections.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nuclass {nuclass.__version__}")
    add_debug(parser, False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    data = (_add_check, add_doctor, add_fetch, _add_simulate, add_check_bundle, add_align, add_build_slide)
    labels = (add_panel, add_label, add_split, add_patches)
    for add in (*data, *labels, add_plan, add_backbones, add_train, add_import_checkpoint, add_evaluate, add_predict):
        add(commands)
    return parser


def _command(
    commands: _Commands, name: str, run: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    parser = add_command(commands, name, about.split(". ")[0].split("\n")[0].rstrip("."), about)
    parser.set_defaults(run=run)
    return parser


def _add_check(commands: _Commands) -> None:
    parser = _command(
        commands,
        "check",
        _check,
        "Check a study's configuration, sheets and tables before anything runs.\n"
        "All faults come in one message, each with file, line, what was expected and how to mend it.\n\n"
        "examples:\n  nuclass check\n  nuclass check --configfile config/mine.yaml\n",
    )
    add_settings(parser)
    parser.add_argument("--directory", type=Path, default=Path(), help="folder of the study (default: the current one)")


def _check(options: argparse.Namespace) -> None:
    from nuclass.core.config import merge_files
    from nuclass.core.protocol import describe
    from nuclass.training.whole_study import load_whole_study

    files = [BASE, *options.configfile]
    study = load_whole_study(merge_files(files, options.directory), options.directory, files)
    sys.stdout.write(
        f"The study '{study.config['study']}' is sound: {len(study.train_slides)} training slides "
        f"({', '.join(study.train_slides)}), {len(study.cohorts)} cohorts ({', '.join(study.cohorts)}).\n"
        f"Protocol: {describe(study.protocol)}.\n"
    )


def _add_simulate(commands: _Commands) -> None:
    from nuclass.core.names import ORGANS

    parser = _command(
        commands,
        "simulate",
        _simulate,
        "Write one synthetic slide: a complete Xenium bundle, its H&E image and its alignment.\n"
        "The same slide name and seed give the same bytes. The truth is written to a folder of its own.\n\n"
        "example:\n  nuclass simulate ovary_1 --organ ovary --out work/simulated\n",
    )
    parser.add_argument("slide", help="name of the slide; it enters the seed")
    parser.add_argument("--organ", choices=ORGANS, required=True, help="organ of the section")
    parser.add_argument("--role", choices=("train", "cohort"), default="train", help="size and stain of the slide")
    parser.add_argument("--seed", type=int, default=20251113, help="seed of the study (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for bundle/ and truth/")


def _simulate(options: argparse.Namespace) -> None:
    from nuclass.synthetic import simulate_slide

    simulate_slide(
        slide=options.slide,
        organ=options.organ,
        role=options.role,
        seed=options.seed,
        bundle_folder=options.out / "bundle",
        truth_folder=options.out / "truth",
    )
    sys.stdout.write(f"Wrote {options.out / 'bundle'} and {options.out / 'truth'}.\n")


if __name__ == "__main__":
    sys.exit(main())
