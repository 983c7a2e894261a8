"""Type the cells of one's own slide with the gate of the study."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.apply.run import Options, predict_own

    row, predict = snakemake.params.row, snakemake.params.predict
    device = {"gpu": "cuda"}.get(predict["accelerator"], predict["accelerator"])
    local, wide, gate = map(Path, snakemake.input.checkpoints)
    predict_own(
        row["image"],
        row["cells"],
        gate,
        Path(snakemake.output.facts).parent,
        organ=row["organ"],
        mpp=row["mpp"],
        frame=row["frame"],
        reading={name: row[name] for name in ("alignment", "columns", "origin") if row[name] is not None},
        name=snakemake.wildcards.slide,
        branches={"local": local, "global": wide},
        formats=("csv", "geojson", "summary", "explorer"),
        max_off_slide=snakemake.params.max_off_slide,
        options=Options(
            device,
            predict["batch_size"],
            predict["precision"],
            predict["workers"],
            snakemake.params.cache_mb,
            snakemake.threads,
        ),
        classes=snakemake.input.classes,
    )
