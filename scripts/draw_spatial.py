"""Draw every cohort as it lies on its slide: label, prediction, errors, confidence, gate."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.spatial import draw_spatial

    slides = snakemake.params.slides
    windows = dict(zip(slides, snakemake.input.windows, strict=True))
    draw_spatial(
        dict(zip(slides, snakemake.input.tables, strict=True)),
        {slide: path for slide, path in windows.items() if path.endswith(".zarr")},
        snakemake.output.pictures,
        snakemake.output.csv,
        mpp=snakemake.params.mpp,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
