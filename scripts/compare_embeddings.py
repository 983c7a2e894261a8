"""Compare the embeddings of local models that use the organ in different ways, on the same random cells."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.files import write_json
    from nuclass.evaluation.embedding_space import compare_embeddings

    write_json(snakemake.output.json, compare_embeddings(snakemake.params.models, **snakemake.params.options))
