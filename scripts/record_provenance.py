"""Write down what this run was made from: settings, sheets, code, packages, inputs."""

import json
from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    import yaml

    from nuclass.core.crate import run_crate
    from nuclass.core.files import atomic_path, write_json
    from nuclass.core.own_files import home
    from nuclass.core.provenance import copy_workflow, run_record

    settings = json.loads(snakemake.params.config)
    bundles = dict(zip(snakemake.params.slides, snakemake.input.bundles, strict=True))
    patches = {Path(path).parent.name: path for path in snakemake.input.patches}
    repository = home()
    models = json.loads(snakemake.params.models)
    made = sorted({*snakemake.input.results, *snakemake.input.models})
    record = run_record(
        settings | {"models": models},
        list(dict.fromkeys(snakemake.input.tables)),
        bundles,
        repository,
        patches,
        made,
        snakemake.input.models,
    )
    write_json(snakemake.output.run, record | {"config": settings})
    for path, content in ((snakemake.output.config, settings), (snakemake.output.models, models)):
        with atomic_path(path) as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    with atomic_path(snakemake.output.slides) as path:
        path.write_text(snakemake.params.sheet, encoding="utf-8")
    names = copy_workflow(repository, snakemake.output.code)
    told = {Path(snakemake.output[name]).name: what for name, what in snakemake.params.told.items()}
    about = {Path(path).name: what for path, what in snakemake.params.about.items()}
    write_json(snakemake.output.crate, run_crate(record, workflow=names, settings=told, made=about))
