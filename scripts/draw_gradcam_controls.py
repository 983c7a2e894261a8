"""Draw what the activation maps of the chosen cells are held against."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.gradcam_controls import draw_gradcam_controls

    draw_gradcam_controls(
        snakemake.input.maps,
        snakemake.input.controls,
        snakemake.output.pictures,
        snakemake.output.csv,
        windows=tuple(snakemake.params.windows),
        mpp=snakemake.params.mpp,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
