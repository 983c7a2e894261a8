"""The command ``nuclass doctor``: will the study run here, and if not, what is to be done."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nuclass.cli_common import BASE, add_command, add_settings

_GROUPS = ("machine", "packages", "gpu", "study", "data", "weights", "network", "cluster", "conda")
_ABOUT = """\
Check whether the study of this folder will run here. Looks at the machine, Python and packages, GPU, settings and
sheets, slides, weights, network, Slurm and conda; changes nothing; reads files whole with --hashes alone. Each line is

  PASS  all is well        WARN  may cost time or a part of the results
  SKIP  does not apply     FAIL  the study will not run; the line below says what to do

The exit status is 1 with any FAIL. docs/doctor.md explains every check. The same as a goal: snakemake --cores 1 doctor

examples:
  nuclass doctor
  nuclass doctor --configfile config/paper.yaml
  nuclass doctor --only gpu weights
  nuclass doctor --offline --json doctor.json
"""


def add_doctor(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the others."""
    parser = add_command(commands, "doctor", "Check whether the study will run on this machine", _ABOUT)
    add_settings(parser)
    parser.add_argument("--directory", type=Path, default=Path(), help="folder of the study (default: the current one)")
    parser.add_argument("--only", nargs="+", choices=_GROUPS, default=[], metavar="GROUP", help=", ".join(_GROUPS))
    parser.add_argument("--offline", action="store_true", help="ask nothing of the network")
    parser.add_argument("--hashes", action="store_true", help="compare the sha256 of weight files (2 s for each GB)")
    parser.add_argument("--json", metavar="FILE", help="write the findings there as JSON; - for standard output")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> None:
    import json

    from nuclass.core.files import write_json
    from nuclass.doctor import Case, as_json, counts_of, examine, study_name, tell

    files = [BASE, *options.configfile]
    case = Case(options.directory, files, offline=options.offline, hashes=options.hashes)
    results = examine(case, options.only)
    if options.json:
        told = as_json(results, study_name(case))
        if options.json != "-":
            write_json(options.json, told)
        else:
            sys.stdout.write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    if options.json != "-":
        tell(results)
    if counts_of(results)["fail"]:
        sys.stdout.flush()
        sys.exit(1)
