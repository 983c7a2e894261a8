"""Describe local models that use the organ in different ways: maps, accuracy by organ, confusion, reliability."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.files import write_csv, write_parquet
    from nuclass.evaluation.organ_use import describe_organ_use

    for part, table in describe_organ_use(snakemake.params.models, **snakemake.params.options).items():
        path = snakemake.output[part]
        (write_parquet if path.endswith(".parquet") else write_csv)(path, table)
