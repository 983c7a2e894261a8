"""What Snakemake and its Slurm plugin leave out where jobs run on a cluster: lanes, signals, errors. For common.smk."""

from snakemake.jobs import GroupJob
from snakemake.shell import shell

from nuclass.core.pass_on import pass_on_sigterm


def keep_lanes():
    """Tell the Snakemake inside a cluster job the lanes of the run: `--resources` does not reach it by itself.

    Without them it asks for as many cores as jobs of its group could run side by side, and Slurm refuses that step.
    """
    name = "NUCLASS_LANES"
    if not workflow.remote_exec:
        lanes = workflow.global_resources.get("lanes").value
        if lanes is not None:
            os.environ[name] = str(lanes)
    elif name in os.environ:
        workflow.register_resource("lanes", int(os.environ[name]))


def hear_of_limits():
    """Let the scripts of a cluster job hear of its time limit, and let nobody else end because of it.

    The shell between Snakemake and a script would die of SIGTERM where it is older than bash 5.1 or starts conda, and the
    job would be taken for failed while its script still saves its state.
    """
    name = "NUCLASS_CLUSTER_JOB"
    if workflow.remote_exec:
        os.environ[name] = "1"
        pass_on_sigterm()
    if name in os.environ:
        shell.prefix("set -euo pipefail; trap : TERM; ")


def name_groups():
    """Give groups of jobs the name of a rule, which the Slurm plugin 2.8.0 asks for when it cannot submit one.

    Without it, its own message fails, and Snakemake waits for ever for a job that was never submitted: a wrong name of
    the project to charge is enough.
    """
    if not hasattr(GroupJob, "rule"):
        setattr(GroupJob, "rule", property(lambda group: next(iter(group.jobs)).rule))


keep_lanes()
hear_of_limits()
name_groups()
