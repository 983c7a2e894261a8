"""Draw the chosen cells with the class activation maps of both branches and as the gate weighs them."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.gradcam import draw_branch_maps

    draw_branch_maps(
        snakemake.input.maps,
        snakemake.input.cells,
        snakemake.output.pictures,
        snakemake.output.csv,
        windows=tuple(snakemake.params.windows),
        mpp=snakemake.params.mpp,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
