"""A page to look around the cohorts: the slide as deep-zoom tiles, its cells and what the models say of each."""

EXPLORED = CONFIG["figures"]["explorer"]["slides"] or COHORTS
EXPLORER_SOURCES = ROOT / "resources/explorer"
EXPLORER_FILES = sorted(
    os.path.relpath(path) for path in EXPLORER_SOURCES.rglob("*") if path.is_file() and path.suffix != ".md"
)
EXPLORER_SLIDES = [
    {"name": slide, **slide_row(slide, "organ", "role"), "picture": slide in BUNDLE_SLIDES} for slide in EXPLORED
]


rule cut_explorer_tiles:
    input:
        store="results/slides/{slide}/he.ome.zarr",
    output:
        tiles=directory("results/explorer/slides/{slide}/tiles"),
    wildcard_constraints:
        slide=WITH_BUNDLE,
    params:
        quality=CONFIG["figures"]["explorer"]["jpeg_quality"],
        cache_mb=CONFIG["slide_store"]["cache_mb"],
        code=code_hash("cut_explorer_tiles"),
    log:
        "logs/cut_explorer_tiles/{slide}.log",
    benchmark:
        "benchmarks/cut_explorer_tiles/{slide}.tsv"
    group:
        with_slide(small="explorer")
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=slide_minutes(120, per_gb=10),
    conda:
        "../envs/figures.yaml"
    message:
        "Slide {wildcards.slide}: deep-zoom tiles of the H&E"
    script:
        "../scripts/cut_explorer_tiles.py"


rule write_explorer_cells:
    input:
        tables=expand("results/predictions/{model}/{{slide}}.parquet", model=MODELS),
        classes=own("resources/classes.tsv"),
        all_cells="results/slides/{slide}/cells.parquet",
        chosen="results/interpret/cells.csv",
        maps="results/interpret/gradcam.npz",
    output:
        cells=directory("results/explorer/slides/{slide}/cells"),
    params:
        models=MODELS,
        code=code_hash("write_explorer_cells"),
    log:
        "logs/write_explorer_cells/{slide}.log",
    benchmark:
        "benchmarks/write_explorer_cells/{slide}.tsv"
    group:
        "explorer"
    threads: 1
    resources:
        mem_mb=mem(1000, 6),
        runtime=minutes(30, per_gb=30),
    conda:
        "../envs/figures.yaml"
    message:
        "Slide {wildcards.slide}: cells and predictions for the explorer"
    script:
        "../scripts/write_explorer_cells.py"


rule make_explorer:
    input:
        page=own("resources/explorer/index.html"),
        sources=EXPLORER_FILES,
        cells=expand("results/explorer/slides/{slide}/cells", slide=EXPLORED),
        tiles=[f"results/explorer/slides/{slide}/tiles" for slide in EXPLORED if slide in BUNDLE_SLIDES],
    output:
        index="results/explorer/index.html",
        study="results/explorer/study.js",
        assets=directory("results/explorer/assets"),
    params:
        study=CONFIG["study"],
        slides=EXPLORER_SLIDES,
        windows=CONFIG["windows"],
        mpp=CONFIG["mpp"],
        synthetic=SYNTHETIC,
        code=code_hash("make_explorer"),
    log:
        "logs/make_explorer/all.log",
    benchmark:
        "benchmarks/make_explorer/all.tsv"
    group:
        "explorer"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "The page results/explorer/index.html"
    script:
        "../scripts/make_explorer.py"
