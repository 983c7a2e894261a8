"""Compute controls of the local model's activation maps for the chosen cells."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    import numpy as np
    import pandas as pd

    from nuclass.core.files import atomic_path, write_csv
    from nuclass.interpret.controls import compute_controls

    found, job = snakemake.input, snakemake.params
    local, wide = found.checkpoints
    maps, controls = compute_controls(
        pd.read_csv(found.cells, dtype={"cell_id": str}),
        windows=dict(zip(job.slides, found.windows, strict=True)),
        tables=dict(zip(job.slides, found.tables, strict=True)),
        checkpoints={"local": local, "global": wide},
        cache_mb=job.cache_mb,
        context_folder=Path(found.context[0]).parent if found.context else None,
    )
    with atomic_path(snakemake.output.maps) as path:
        np.savez_compressed(path, **maps)
    write_csv(snakemake.output.controls, controls)
