"""Draw the chosen cells with the activation maps of the own models and of the fine-tuned baselines."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.gradcam import draw_gradcam

    draw_gradcam(
        snakemake.input.maps,
        snakemake.input.cells,
        snakemake.input.baseline_maps,
        snakemake.input.baseline_calls,
        snakemake.output.pictures,
        snakemake.output.csv,
        windows=tuple(snakemake.params.windows),
        mpp=snakemake.params.mpp,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
