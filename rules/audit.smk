"""The audit: what each flaw of the original does to the numbers."""


rule audit_protocol:
    input:
        tables=files_of(run_tables(of_variants.REFERENCE), *map(run_tables, AUDITED)),
        seeds=f"results/evaluation/ablations/{of_variants.SEEDS}_spread.csv",
        policy=["results/evaluation/fusion.json"] if WITH_POLICY else [],
    output:
        csv="results/evaluation/audit.csv",
    params:
        runs=[run_tables(of_variants.REFERENCE), *map(run_tables, AUDITED)],
        idle={
            name: of_variants.idle(name, STUDY.short_models, CONFIG["splits"]["test"], STUDY.cuts_windows)
            for name in AUDITED
        },
        options=INTERVALS,
        code=code_hash("audit_protocol"),
    log:
        "logs/audit_protocol/all.log",
    benchmark:
        "benchmarks/audit_protocol/all.tsv"
    threads: 1
    resources:
        mem_mb=mem(1500, 1),
        runtime=minutes(480, per_gb=60),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Audit: what each flaw of the original does to the numbers"
    script:
        "../scripts/audit_protocol.py"


rule tabulate_audit:
    input:
        audit="results/evaluation/audit.csv",
    output:
        csv=laid_out("audit", "Audit", "What each flaw does"),
        md="results/tables/audit.md",
        tex="results/tables/audit.tex",
    params:
        told=TOLD,
        code=code_hash("tabulate_audit"),
    log:
        "logs/tabulate_audit/all.log",
    benchmark:
        "benchmarks/tabulate_audit/all.tsv"
    group:
        "audit"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table audit: what each flaw of the original does to the numbers"
    script:
        "../scripts/tabulate_audit.py"


rule draw_audit:
    input:
        **SHEETS,
        audit="results/evaluation/audit.csv",
    output:
        pictures=drawn("audit", "Audit", "What each flaw does"),
        csv="results/figures/audit.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_audit"),
    log:
        "logs/draw_audit/all.log",
    benchmark:
        "benchmarks/draw_audit/all.tsv"
    group:
        "audit"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure audit: what each flaw of the original does to the numbers"
    script:
        "../scripts/draw_audit.py"
