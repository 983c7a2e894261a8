"""Write the methods of the study in words, with its own numbers."""

import json

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.provenance import checkpoint_versions, package_versions
    from nuclass.tables.methods import write_methods

    found, names = snakemake.input, snakemake.params.trained
    write_methods(
        snakemake.output[0],
        config=json.loads(snakemake.params.config),
        models=json.loads(snakemake.params.models),
        composition=found.composition,
        quality=found.quality,
        metrics=dict(zip(names, found.metrics, strict=True)),
        slides=snakemake.params.slides,
        splits=found.splits,
        checkpoints={name: checkpoint_versions(path) for name, path in zip(names, found.checkpoints, strict=True)},
        packages=package_versions(),
    )
