"""Fit linear heads on the cached features of frozen networks."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from itertools import product
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.baselines import train_linear

    names, slides = snakemake.params.names, snakemake.params.slides
    places = product(names, [row["slide"] for row in slides])
    files = dict(zip(places, map(Path, snakemake.input.features), strict=True))
    study = Study(slides, Path("results"), **snakemake.params.scale)
    for name, checkpoint in zip(names, snakemake.output.checkpoint, strict=True):
        features = {slide: path for (network, slide), path in files.items() if network == name}
        work = Path(snakemake.params.work) / f"{name}_linear"
        train_linear(snakemake.params.models, name, study, features, Path(checkpoint).parent, work)
