"""Tell what the whole study will cost, from its jobs, the sizes of its slides and the table of rates."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    import json
    import sys
    import tempfile
    from pathlib import Path

    from nuclass.core.config import load_study
    from nuclass.core.files import atomic_path, write_json
    from nuclass.core.own_files import home
    from nuclass.plan.jobs import SNAKEFILE, jobs_of
    from nuclass.plan.plan import make_plan
    from nuclass.plan.rates import read_rates
    from nuclass.plan.report import as_json, as_rows, as_text, write_rows
    from nuclass.training.config import parse_models

    params = snakemake.params
    with tempfile.TemporaryDirectory(prefix="nuclass_plan_") as folder:
        # JSON is YAML; the settings in force, as --configfile and --config made them.
        settings = Path(folder) / "config.yaml"
        settings.write_text(params.config, encoding="utf-8")
        study = load_study(json.loads(params.config), ".", [settings], check_models=parse_models)
        jobs = jobs_of(params.goals, [settings], ".", python=params.python, snakefile=home() / SNAKEFILE)
    plan = make_plan(study, jobs, read_rates(snakemake.input.rates), ".", params.goals)
    text = as_text(plan)
    with atomic_path(snakemake.output.text) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_rows(snakemake.output.table, as_rows(plan))
    write_json(snakemake.output.json, as_json(plan))
    sys.stdout.write(text)
