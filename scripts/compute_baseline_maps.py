"""Compute class activation maps of the chosen cells for the fine-tuned baselines."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    import numpy as np
    import pandas as pd

    from nuclass.core.files import atomic_path, write_csv
    from nuclass.interpret.baselines import compute_baseline_maps, tell_left_out

    found, job = snakemake.input, snakemake.params
    tell_left_out(job.asked, job.names)
    maps, calls = compute_baseline_maps(
        pd.read_csv(found.cells, dtype={"cell_id": str}),
        windows=dict(zip(job.slides, found.windows, strict=True)),
        tables=dict(zip(job.slides, found.tables, strict=True)),
        checkpoints=dict(zip(job.names, found.checkpoints, strict=True)),
        cache_mb=job.cache_mb,
    )
    with atomic_path(snakemake.output.maps) as path:
        np.savez_compressed(path, **maps)
    write_csv(snakemake.output.calls, calls)
