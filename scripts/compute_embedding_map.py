"""Lay out the embeddings of the same random held-out cells of every model in two dimensions."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.files import write_parquet
    from nuclass.core.names import GATE
    from nuclass.evaluation.compare import by_model
    from nuclass.evaluation.embedding_map import map_embeddings

    tables = by_model(snakemake.input.tables, snakemake.params.models)
    fused_first = sorted(tables, key=lambda model: model != GATE)
    files = {model: list(tables[model].values()) for model in fused_first}
    write_parquet(snakemake.output.map, map_embeddings(files, seed=snakemake.params.seed))
