"""Write the methods of the study in words, with its own numbers."""

import json

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.protocol import describe, parse_protocol
    from nuclass.core.provenance import package_versions
    from nuclass.tables.methods import write_methods

    found, config = snakemake.input, json.loads(snakemake.params.config)
    write_methods(
        snakemake.output[0],
        config=config,
        models=json.loads(snakemake.params.models),
        composition=found.composition,
        quality=found.quality,
        metrics=dict(zip(snakemake.params.trained, found.metrics, strict=True)),
        protocol=describe(parse_protocol(config.get("protocol"))),
        packages=package_versions(),
        synthetic=snakemake.params.synthetic,
    )
