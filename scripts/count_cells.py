"""Count the labelled cells by slide, split and class, and the cells that each step left out."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    import pandas as pd

    from nuclass.core.files import write_csv
    from nuclass.data.funnel import funnel_table
    from nuclass.evaluation.dataset import count_cells

    slides = snakemake.params.slides
    results = Path(snakemake.input.splits[0]).parents[1]
    sheet = pd.DataFrame.from_dict(slides, orient="index")
    composition, quality = count_cells(
        dict(zip(slides, snakemake.input.labels, strict=True)),
        dict(zip(slides, snakemake.input.splits, strict=True)),
        sheet,
    )
    write_csv(snakemake.output.composition, composition)
    write_csv(snakemake.output.quality, quality)
    write_csv(snakemake.output.funnel, funnel_table([{"slide": slide} for slide in slides], results))
