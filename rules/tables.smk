"""One rule a table: each lays out numbers of the evaluation as CSV, Markdown and LaTeX."""


rule tabulate_holdout_comparison:
    input:
        comparison="results/evaluation/baselines.csv",
        classes=own("resources/classes.tsv"),
    output:
        csv=laid_out("holdout_comparison", "Results", "Models and baselines on the cohorts"),
        md="results/tables/holdout_comparison.md",
        tex="results/tables/holdout_comparison.tex",
    params:
        synthetic=SYNTHETIC,
        flaws=FLAWS,
        closed_set=PROTOCOL.closed_set,
        stand_ins=STAND_INS,
        min_support=CONFIG["evaluation"]["min_support"],
        code=code_hash("tabulate_holdout_comparison"),
    log:
        "logs/tabulate_holdout_comparison/all.log",
    benchmark:
        "benchmarks/tabulate_holdout_comparison/all.tsv"
    group:
        "comparisons"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table holdout_comparison: how models and baselines do on held-out slides"
    script:
        "../scripts/tabulate_holdout_comparison.py"


rule tabulate_branches:
    input:
        comparison="results/evaluation/comparison.json",
    output:
        csv=laid_out("branches", "Results", "Branches and gate"),
        md="results/tables/branches.md",
        tex="results/tables/branches.tex",
    params:
        synthetic=SYNTHETIC,
        flaws=FLAWS,
        code=code_hash("tabulate_branches"),
    log:
        "logs/tabulate_branches/all.log",
    benchmark:
        "benchmarks/tabulate_branches/all.tsv"
    group:
        "results"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table branches: which branch is right, and how well the gate tells"
    script:
        "../scripts/tabulate_branches.py"


rule tabulate_dataset:
    input:
        composition="results/evaluation/composition.csv",
        classes=own("resources/classes.tsv"),
    output:
        csv=laid_out("dataset", "Data", "Data set"),
        md="results/tables/dataset.md",
        tex="results/tables/dataset.tex",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("tabulate_dataset"),
    log:
        "logs/tabulate_dataset/all.log",
    benchmark:
        "benchmarks/tabulate_dataset/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table dataset: labelled cells by class, slide and split"
    script:
        "../scripts/tabulate_dataset.py"


rule tabulate_panels:
    input:
        panels=expand("results/labels/{slide}/panel.csv", slide=BUNDLE_SLIDES),
        classes=own("resources/classes.tsv"),
    output:
        csv=laid_out("panels", "Labels", "What each panel can tell"),
        md="results/tables/panels.md",
        tex="results/tables/panels.tex",
    params:
        slides=BUNDLE_SLIDES,
        organs={slide: slide_row(slide)["organ"] for slide in BUNDLE_SLIDES},
        synthetic=SYNTHETIC,
        code=code_hash("tabulate_panels"),
    log:
        "logs/tabulate_panels/all.log",
    benchmark:
        "benchmarks/tabulate_panels/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table panels: what the panel of each slide can tell apart"
    script:
        "../scripts/tabulate_panels.py"


rule tabulate_label_quality:
    input:
        quality="results/evaluation/label_quality.csv",
        truth=["results/evaluation/truth/labels.json"] if TRUTH_KNOWN else [],
    output:
        csv=laid_out("label_quality", "Labels", "Cells with a label"),
        md="results/tables/label_quality.md",
        tex="results/tables/label_quality.tex",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("tabulate_label_quality"),
    log:
        "logs/tabulate_label_quality/all.log",
    benchmark:
        "benchmarks/tabulate_label_quality/all.tsv"
    group:
        "results"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table label_quality: how many cells got a label, and how sure it is"
    script:
        "../scripts/tabulate_label_quality.py"


rule tabulate_label_agreement:
    input:
        summaries=expand("results/labels/{slide}/summary.json", slide=BUNDLE_SLIDES),
        scores=expand("results/labels/{slide}/scores.csv", slide=BUNDLE_SLIDES),
        classes=own("resources/classes.tsv"),
    output:
        csv=laid_out("label_agreement", "Labels", "Markers against given labels"),
        md="results/tables/label_agreement.md",
        tex="results/tables/label_agreement.tex",
    params:
        slides=BUNDLE_SLIDES,
        synthetic=SYNTHETIC,
        code=code_hash("tabulate_label_agreement"),
    log:
        "logs/tabulate_label_agreement/all.log",
    benchmark:
        "benchmarks/tabulate_label_agreement/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table label_agreement: labels from markers against given ones"
    script:
        "../scripts/tabulate_label_agreement.py"


rule tabulate_label_confidence:
    input:
        labels=expand("results/labels/{slide}/labels.parquet", slide=BUNDLE_SLIDES),
        ontology=CONFIG["ontology"],
        truths=expand("resources/truth/{slide}/truth.parquet", slide=BUNDLE_SLIDES) if TRUTH_KNOWN else [],
    output:
        csv=laid_out("label_confidence", "Labels", "Confidence, ours and the original's"),
        md="results/tables/label_confidence.md",
        tex="results/tables/label_confidence.tex",
    params:
        slides=BUNDLE_SLIDES,
        min_confidence=CONFIG["labels"]["min_confidence"],
        synthetic=SYNTHETIC,
        code=code_hash("tabulate_label_confidence"),
    log:
        "logs/tabulate_label_confidence/all.log",
    benchmark:
        "benchmarks/tabulate_label_confidence/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(1000, 10),
        runtime=minutes(10, per_gb=30),
    conda:
        "../envs/figures.yaml"
    message:
        "Table label_confidence: what our confidence and the original's keep"
    script:
        "../scripts/tabulate_label_confidence.py"


rule tabulate_funnel:
    input:
        counts="results/evaluation/funnel.csv",
    output:
        csv=laid_out("funnel", "Data", "Cells left after each step"),
        md="results/tables/funnel.md",
        tex="results/tables/funnel.tex",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("tabulate_funnel"),
    log:
        "logs/tabulate_funnel/all.log",
    benchmark:
        "benchmarks/tabulate_funnel/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table funnel: cells left after each step"
    script:
        "../scripts/tabulate_funnel.py"


if TRUTH_KNOWN:

    rule tabulate_synthetic_truth:
        input:
            criteria="results/evaluation/truth/criteria.csv",
        output:
            csv=laid_out("synthetic_truth", "Results", "Against the truth"),
            md="results/tables/synthetic_truth.md",
            tex="results/tables/synthetic_truth.tex",
        params:
            flaws=FLAWS,
            code=code_hash("tabulate_synthetic_truth"),
        log:
            "logs/tabulate_synthetic_truth/all.log",
        benchmark:
            "benchmarks/tabulate_synthetic_truth/all.tsv"
        group:
            "results"
        threads: 1
        resources:
            mem_mb=mem(500),
            runtime=minutes(10),
        conda:
            "../envs/figures.yaml"
        message:
            "Table synthetic_truth: the synthetic study against its truth"
        script:
            "../scripts/tabulate_synthetic_truth.py"
