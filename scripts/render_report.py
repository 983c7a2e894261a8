"""Bind figures, tables, evaluation and provenance into one HTML file."""

import subprocess
import sys

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.errors import UserError
    from nuclass.core.files import atomic_path
    from nuclass.core.log import get_logger
    from nuclass.core.own_files import home

    log = get_logger("nuclass.report")
    with atomic_path(snakemake.output[0]) as path:
        # The outer Snakemake holds the lock and its settings; the report only reads what is finished.
        snakefile = home() / "workflow" / "Snakefile"
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile)]
        command += ["--configfile", snakemake.input.config, "--profile", "none", "--workflow-profile", "none"]
        command += ["--replace-workflow-config", "--nolock", "--cores", "1"]
        command += ["--report", str(path), "--", *snakemake.params.targets]
        done = subprocess.run(command, capture_output=True, text=True)
        log.info("%s", done.stderr.strip() or done.stdout.strip())
        if done.returncode != 0 or not path.exists():
            raise UserError(
                "The report could not be written",
                where=snakemake.output[0],
                found=f"Snakemake ended with status {done.returncode}; its messages stand above",
                fix="mend what they name and start again; all other results are finished",
            )
