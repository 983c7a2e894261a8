"""Published numbers beside those of the study."""


rule tabulate_paper_comparison:
    input:
        values=own("resources/paper_values.tsv"),
        comparison="results/evaluation/comparison.csv",
        composition="results/evaluation/composition.csv",
    output:
        csv=laid_out("paper_comparison", "Results", "Published numbers and ours"),
        md="results/tables/paper_comparison.md",
        tex="results/tables/paper_comparison.tex",
    params:
        facts={
            "mpp": CONFIG["mpp"],
            "window_local": CONFIG["windows"]["local"],
            "window_global": CONFIG["windows"]["global"],
        },
        closed_set=PROTOCOL.closed_set,
        synthetic=SYNTHETIC,
        flaws=FLAWS,
        code=code_hash("tabulate_paper_comparison"),
    log:
        "logs/tabulate_paper_comparison/all.log",
    benchmark:
        "benchmarks/tabulate_paper_comparison/all.tsv"
    group:
        "comparisons"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Table paper_comparison: published numbers beside ours"
    script:
        "../scripts/tabulate_paper_comparison.py"
