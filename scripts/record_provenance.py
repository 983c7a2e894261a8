"""Write down what this run was made from: settings, sheets, code, packages, inputs."""

import json
from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    import yaml

    from nuclass.core.files import atomic_path, write_json
    from nuclass.core.provenance import run_record

    settings = json.loads(snakemake.params.config)
    bundles = dict(zip(snakemake.params.slides, snakemake.input.bundles, strict=True))
    patches = {Path(path).parent.name: path for path in snakemake.input.patches}
    repository = Path(snakemake.scriptdir).parent
    record = run_record(settings, snakemake.input.tables, bundles, repository, patches)
    write_json(snakemake.output.run, record)
    with atomic_path(snakemake.output.config) as path:
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    with atomic_path(snakemake.output.slides) as path:
        path.write_text(snakemake.params.sheet, encoding="utf-8")
