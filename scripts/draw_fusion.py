"""Draw the gate beside the branches, the plain mean, the safety policy and the oracle."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.fusion import draw_fusion

    draw_fusion(
        snakemake.input.comparison,
        snakemake.output.pictures,
        snakemake.output.csv,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
