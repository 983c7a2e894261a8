"""Divide one slide into train, validation and test whose windows share no pixel; a cohort is all test."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.files import write_json, write_parquet
    from nuclass.splits import SplitConfig, read_cells, read_labels, split_cells
    from nuclass.splits.picture import draw_split

    config = SplitConfig.from_config(snakemake.params)
    cells = read_cells(snakemake.input.cells)
    labels = read_labels(snakemake.input.labels)

    split = split_cells(cells, labels, config, snakemake.params.role, snakemake.wildcards.slide)

    write_parquet(snakemake.output.table, split.frame)
    write_json(snakemake.output.report, split.report)
    draw_split(snakemake.output.picture, cells, split.frame["split"], split.report, config.window_px, config.mpp)
