"""Draw confidence against accuracy, before and after calibration, and risk against coverage."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.calibration import draw_calibration

    models = snakemake.params.models
    draw_calibration(
        dict(zip(models, snakemake.input.reliability, strict=True)),
        dict(zip(models, snakemake.input.risks, strict=True)),
        dict(zip(models, snakemake.input.metrics, strict=True)),
        snakemake.output.pictures,
        snakemake.output.csv,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
