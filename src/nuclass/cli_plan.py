"""The command ``nuclass plan``: what a study will cost, before anything is spent."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nuclass.cli_common import BASE, add_command, add_settings, study_file

_ABOUT = """\
Tell what a study will cost before anything is spent: jobs by stage and what is done of them, hours of GPUs and cores,
time on the clock, memory, disk and downloads, each with low, expected and high and with what it rests on.
Asks Snakemake for the jobs (a dry run), slides for their sizes, resources/rates.tsv for what jobs take.
Needs no network, and no file of the study.

examples:
  nuclass plan                                        the demo, all goals
  nuclass plan --configfile config/paper.yaml         the real study
  nuclass plan labels --cores 8                       one goal on a machine with eight cores
  nuclass plan --jobs 50 --gpus 4 --start 20          on a cluster, with 20 s for each job to be taken up
  nuclass plan --learn rates.tsv                      rates from the finished jobs of the study in this folder
  nuclass plan --rates rates.tsv --configfile next.yaml    the next study by the first one's measure
"""


def add_plan(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the others."""
    parser = add_command(commands, "plan", "Tell what a study will cost before anything is spent", _ABOUT)
    parser.add_argument("goals", nargs="*", metavar="GOAL", help="goals of the workflow, or files (default: all)")
    add_settings(parser)
    parser.add_argument("--directory", type=Path, default=Path(), help="folder of the study (default: the current one)")
    parser.add_argument("--jobs", type=_count, metavar="N", help="jobs at once (default: several numbers are told)")
    parser.add_argument("--cores", type=_count, metavar="N", help="cores that jobs share")
    parser.add_argument("--gpus", type=_count, metavar="N", help="GPUs that jobs share")
    parser.add_argument("--start", type=float, metavar="S", help="seconds that the start of each job takes besides")
    parser.add_argument(
        "--rates", type=Path, metavar="FILE", help="rates of your own, laid over those of resources/rates.tsv"
    )
    parser.add_argument("--learn", type=Path, metavar="FILE", help="write rates from finished jobs, and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan as JSON too, with every job")
    parser.add_argument("--tsv", type=Path, metavar="FILE", help="write the plan as a table too")
    parser.set_defaults(run=_plan)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a whole number from 1 is wanted")
    return number


def _plan(options: argparse.Namespace) -> None:
    from nuclass.core.config import load_study, merge_files
    from nuclass.core.files import write_json
    from nuclass.plan.jobs import jobs_of
    from nuclass.plan.learn import learn, write_learned
    from nuclass.plan.plan import make_plan
    from nuclass.plan.rates import RATES, read_rates
    from nuclass.plan.report import as_json, as_rows, as_text, write_rows
    from nuclass.plan.schedule import Limits
    from nuclass.training.config import parse_models

    root = options.directory
    files = [BASE, *(file.absolute() for file in options.configfile)]
    study = load_study(merge_files(files, root), root, files, check_models=parse_models)
    rates = read_rates(study_file(str(RATES)))
    if options.rates is not None:
        rates |= read_rates(options.rates)
    jobs = jobs_of(options.goals, options.configfile, root)
    if options.learn is not None:
        learned = learn(study, jobs, rates, root)
        write_learned(options.learn, learned)
        sys.stdout.write(f"Wrote {options.learn}: rates of {len(learned)} rules, from finished jobs of {root}.\n")
        return
    limited = any(number is not None for number in (options.jobs, options.cores, options.gpus))
    limits = Limits(options.jobs, options.cores, options.gpus) if limited else None
    plan = make_plan(study, jobs, rates, root, options.goals, limits, options.start)
    sys.stdout.write(as_text(plan))
    if options.json is not None:
        write_json(options.json, as_json(plan))
    if options.tsv is not None:
        write_rows(options.tsv, as_rows(plan))
