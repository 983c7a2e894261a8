"""Choose the cells that the activation maps are shown for: those asked for, or by a fixed rule."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.files import write_csv
    from nuclass.evaluation.choose import choose_cells
    from nuclass.evaluation.compare import by_model
    from nuclass.evaluation.predictions import read_models

    wanted = snakemake.params.gradcam
    tables = by_model(snakemake.input.tables, snakemake.params.models)
    models = read_models({model: list(files.values()) for model, files in tables.items()})
    cells = choose_cells(models, per_cohort=wanted["per_cohort"], cells=wanted["cells"])
    write_csv(snakemake.output.cells, cells)
