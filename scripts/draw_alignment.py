"""Draw nuclei on the H&E of every slide, and how far they lie from where they should."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.alignment import draw_alignment_of

    found = snakemake.input
    columns = zip(snakemake.params.slides, found.alignments, found.transforms, found.bundles, strict=True)
    draw_alignment_of(
        {
            slide: {"alignment": alignment, "transform": transform, "bundle": Path(bundle).parent}
            for slide, alignment, transform, bundle in columns
        },
        snakemake.output.pictures,
        snakemake.output.csv,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
        mpp=snakemake.params.mpp,
    )
