"""Draw what each flaw of the original does to the numbers."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.audit import draw_audit

    draw_audit(
        snakemake.input.audit,
        snakemake.output.pictures,
        snakemake.output.csv,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
