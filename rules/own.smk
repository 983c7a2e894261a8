"""One's own slides, typed by the models of the study: each row of the sheet `own` becomes results/own/{slide}/."""

from nuclass.core.own_sheet import own_inputs, read_own

try:
    OWN = read_own(CONFIG["own"], ROOT / "config" / "schemas", organs=sorted(set(SLIDES.loc[TRAIN_SLIDES, "organ"])))
except UserError as error:
    logger.error(str(error))
    sys.exit(1)


rule predict_own:
    input:
        unpack(lambda wildcards: own_inputs(OWN[wildcards.slide])),
        checkpoints=expand("results/models/{model}/best.ckpt", model=MODELS),
        backbone=CONTEXT_FILES,
        classes=own("resources/classes.tsv"),
    output:
        table="results/own/{slide}/predictions.parquet",
        facts="results/own/{slide}/run.json",
        csv="results/own/{slide}/predictions.csv",
        geojson="results/own/{slide}/predictions.geojson",
        summary="results/own/{slide}/summary.html",
        explorer=directory("results/own/{slide}/explorer"),
    wildcard_constraints:
        slide="|".join(OWN) or "(?!)",
    params:
        row=lambda wildcards: OWN[wildcards.slide],
        max_off_slide=CONFIG["qc"]["max_off_slide"],
        predict=MODEL_CONFIG["predict"],
        cache_mb=CONFIG["slide_store"]["cache_mb"],
        code=code_hash("predict_own"),
    log:
        "logs/predict_own/{slide}.log",
    benchmark:
        "benchmarks/predict_own/{slide}.tsv"
    group:
        without_gpu("predict", "predictions")
    threads: own_threads() + MODEL_CONFIG["predict"]["workers"]
    resources:
        mem_mb=predict_mem(),
        runtime=minutes(network_minutes("predict", 480)),
        gpu=wants_gpu("predict"),
    conda:
        "../envs/train.yaml"
    message:
        "Own slide {wildcards.slide}: its cells, typed by the gate"
    script:
        "../scripts/predict_own.py"


rule own:
    input:
        expand("results/own/{slide}/run.json", slide=OWN),
