"""Compute class activation maps of the chosen cells for the local and the global model."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    import numpy as np
    import pandas as pd

    from nuclass.core.files import atomic_path
    from nuclass.interpret.gradcam import compute_maps

    found = snakemake.input
    cells = pd.read_csv(found.cells, dtype={"cell_id": str})
    local, wide = found.checkpoints
    maps = {}
    if len(cells):
        maps = compute_maps(
            cells,
            windows=dict(zip(snakemake.params.slides, found.windows, strict=True)),
            tables=dict(zip(snakemake.params.slides, found.tables, strict=True)),
            checkpoints={"local": local, "global": wide},
            cache_mb=snakemake.params.cache_mb,
            context_folder=Path(found.context[0]).parent if found.context else None,
        )
    with atomic_path(snakemake.output.maps) as path:
        np.savez_compressed(path, **maps)
