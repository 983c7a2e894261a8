"""What the results were made from, and the report that holds them all."""

import json

from nuclass.core.models_file import read_models_file

MODEL_FILES = [CONFIG["models"], *map(str, read_models_file(CONFIG["models"])[1].values())]
GIVEN_FILES = [str(parse_given(text).path) for text in SLIDES["given"] if text not in ("", "none")]


report: "../workflow/report/workflow.rst"


rule write_methods:
    localrule: True
    input:
        composition="results/evaluation/composition.csv",
        quality="results/evaluation/label_quality.csv",
        metrics=expand("results/models/{model}/metrics.json", model=MODELS),
        checkpoints=expand("results/models/{model}/best.ckpt", model=MODELS),
        splits=expand("results/splits/{slide}.json", slide=TRAIN_SLIDES),
    output:
        report(
            "results/provenance/methods.html",
            category="Methods",
            labels={"figure": "Methods in words"},
            caption="../workflow/report/methods.rst",
        ),
    params:
        code=code_hash("write_methods"),
        config=json.dumps(CONFIG, sort_keys=True),
        models=json.dumps(MODEL_CONFIG, sort_keys=True),
        trained=MODELS,
        slides=SLIDES[["role", "organ", "source", "align", "labels"]].to_dict("index"),
    log:
        "logs/write_methods/all.log",
    benchmark:
        "benchmarks/write_methods/all.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    conda:
        "../envs/report.yaml"
    message:
        "Writing the methods of the study in words"
    script:
        "../scripts/write_methods.py"


rule record_provenance:
    localrule: True
    input:
        tables=[CONFIG["slides"], CONFIG["ontology"], CONFIG["markers"], *OWN_MARKERS, *GIVEN_FILES, *MODEL_FILES],
        bundles=expand("resources/bundles/{slide}/bundle.json", slide=BUNDLE_SLIDES),
        patches=expand("results/slides/{slide}/patches.json", slide=[s for s in ALL_SLIDES if s not in BUNDLE_SLIDES]),
        results=rules.core.input,
        methods=rules.write_methods.output,
        models=expand("results/models/{model}/best.ckpt", model=MODELS),
    output:
        run=report(
            "results/provenance/run.json",
            category="Provenance",
            labels={"what": "code, packages, machine, files"},
            caption="../workflow/report/provenance.rst",
        ),
        config=report(
            "results/provenance/config.yaml",
            category="Provenance",
            labels={"what": "settings in force"},
            caption="../workflow/report/config.rst",
        ),
        slides=report(
            "results/provenance/slides.tsv",
            category="Provenance",
            labels={"what": "sheet of slides"},
            caption="../workflow/report/slides.rst",
        ),
        models="results/provenance/models.yaml",
        code=directory("results/provenance/code"),
        crate="results/provenance/ro-crate-metadata.json",
    params:
        code=code_hash("record_provenance"),
        config=json.dumps(CONFIG),
        models=json.dumps(MODEL_CONFIG, sort_keys=True),
        told={
            "config": "settings of the study, defaults included",
            "slides": "sheet of slides",
            "models": "settings of the models, every section in full",
        },
        about={
            "results/provenance/run.json": "code, packages, machine, inputs and outputs of the run, as one record",
            "results/provenance/methods.html": "the methods in words, with the study's numbers",
        },
        slides=BUNDLE_SLIDES,
        sheet=SLIDES.to_csv(sep="\t"),
    log:
        "logs/record_provenance.log",
    benchmark:
        "benchmarks/record_provenance/all.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    conda:
        "../envs/report.yaml"
    message:
        "Recording settings, code, packages and inputs of this run"
    script:
        "../scripts/record_provenance.py"


REPORTS = {"overview": ["core"], "report": ["evaluation", "figures", "tables"]}
BOUND = {"overview": rules.core.input, "report": [*rules.evaluation.input, *rules.figures.input, *rules.tables.input]}


wildcard_constraints:
    report="|".join(REPORTS),


rule render_report:
    localrule: True
    input:
        config=rules.record_provenance.output.config,
        results=lambda wildcards: list(BOUND[wildcards.report]),
        provenance=[rules.record_provenance.output.run, rules.record_provenance.output.slides],
        captions=[os.path.relpath(path) for path in sorted((ROOT / "workflow" / "report").glob("*.rst"))],
    output:
        "results/{report}.html",
    params:
        targets=lambda wildcards: [
            *REPORTS[wildcards.report],
            "results/provenance/run.json",
            "results/provenance/methods.html",
        ],
        code=code_hash("render_report"),
    log:
        "logs/render_report/{report}.log",
    benchmark:
        "benchmarks/render_report/{report}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=minutes(20),
    conda:
        "../envs/report.yaml"
    message:
        "Writing the report results/{wildcards.report}.html"
    script:
        "../scripts/render_report.py"
