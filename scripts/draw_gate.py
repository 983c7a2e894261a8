"""Draw what the gate does."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.readings import GATE_PARTS
    from nuclass.figures.gate import draw_gate

    draw_gate(
        {part: snakemake.input[part] for part in GATE_PARTS},
        snakemake.input.summary,
        snakemake.output.pictures,
        snakemake.output.csv,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
