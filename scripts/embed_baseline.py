"""Run frozen networks once over every labelled cell's local window and keep their features."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from itertools import product
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.baselines import embed_baseline

    names, slides = snakemake.params.names, snakemake.params.slides
    files = dict(
        zip(product(names, [row["slide"] for row in slides]), map(Path, snakemake.output.features), strict=True)
    )
    study = Study(slides, Path("results"), **snakemake.params.scale)
    for name in names:
        outputs = {slide: path for (network, slide), path in files.items() if network == name}
        embed_baseline(snakemake.params.models, name, study, outputs, Path(snakemake.params.work) / name)
