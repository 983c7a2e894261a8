"""Predict the cohorts with baselines: linear heads from cached features, fine-tuned networks from the windows."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from itertools import product
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.baselines import predict_baselines

    names, slides = snakemake.params.names, [row["slide"] for row in snakemake.params.slides]

    def by_slide(first, files):
        """Return files that are listed name by name, each slide by slide, as name -> slide -> file."""
        flat = dict(zip(product(first, slides), map(Path, files), strict=True))
        return {name: {slide: flat[name, slide] for slide in slides} for name in first}

    predict_baselines(
        snakemake.params.models,
        Study(snakemake.params.slides, Path("results"), **snakemake.params.scale),
        dict(zip(names, map(Path, snakemake.input.checkpoints), strict=True)),
        by_slide(snakemake.params.embedded, snakemake.input.features),
        by_slide(names, snakemake.output.tables),
        Path(snakemake.params.work),
    )
