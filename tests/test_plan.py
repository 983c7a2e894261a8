"""What jobs take and what a study costs, against numbers reckoned by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nuclass.core.config import load_study, merge_files
from nuclass.core.errors import UserError
from nuclass.core.needs import study_needs
from nuclass.core.sizes import NOTHING, Estimate
from nuclass.plan.jobs import Job
from nuclass.plan.learn import learn, measured_of, read_benchmark, write_learned
from nuclass.plan.networks import PUBLISHED, gflop
from nuclass.plan.plan import downloads_of, make_plan, stage_of, with_networks
from nuclass.plan.rates import RATES, origin, rate_of, read_rates, write_rates
from nuclass.plan.report import as_json, as_rows, as_text
from nuclass.plan.schedule import Limits, chain, run
from nuclass.plan.work import Work, epochs, megabytes, seconds, work_of
from nuclass.training.config import parse_models
from plan_example import NETWORK, SHARES, chain_of_jobs, rate, rates, slide
from test_workflow import rule_blocks

REPOSITORY = Path(__file__).parent.parent
KNOWN = {"local_backbone": NETWORK, "baselines": {"plip": {"backbone": {"name": "plip"}}}, "shares": SHARES}
TRAINER = {"max_epochs": 4, "patience": 9}


def expected(job: Job, *slides: object) -> Work:
    sizes = {size.slide: size for size in slides}  # type: ignore[attr-defined]
    return work_of(replace(job, params={**KNOWN, **job.params}), sizes, {"a": Estimate.exactly(5e6)})


def test_time_is_fixed_and_grows_with_work() -> None:
    work = Work(Estimate.exactly(10), Estimate.exactly(100), Estimate.exactly(5), Estimate.exactly(300))
    row = rate("r", fixed_s=2, kcell_s=3, mpx_s=0.1, mb_s=2, gflops=50, low=0.5, high=2)
    # 2 + (10 x 3 + 100 x 0.1 + 5 x 2 + 300 / 50)
    assert seconds(row, work, 1, 0) == Estimate(2 + 28, 2 + 56, 2 + 112)


def test_work_is_shared_by_cores_and_gpus() -> None:
    work = Work(kcells=Estimate.exactly(8))
    assert seconds(rate("r", fixed_s=1, kcell_s=1, cores=4), work, 2, 0).expected == 1 + 8 / 2
    assert seconds(rate("r", fixed_s=1, kcell_s=1, cores=4), work, 16, 0).expected == 1 + 8 / 4
    assert seconds(rate("r", "gpu", fixed_s=1, kcell_s=1), work, 16, 2).expected == 1 + 8 / 2


def test_plain_jobs_read_their_slides() -> None:
    job = Job(0, "draw_labels", {"slide": "a"})
    assert expected(job, slide("a", 2000), slide("b", 500)) == Work(Estimate.exactly(2), Estimate.exactly(100))
    whole = Job(0, "draw_funnel", inputs=["results/splits/a.parquet", "results/slides/b/cells.parquet"])
    assert expected(whole, slide("a", 2000), slide("b", 500)).kcells.expected == pytest.approx(2.5)


def test_downloads_count_by_their_bytes() -> None:
    assert expected(Job(0, "fetch_bundle", {"slide": "a"}), slide("a", 2000)).mb == Estimate.exactly(5)


def test_a_slide_of_the_audits_other_scale_is_smaller() -> None:
    job = Job(0, "build_slide_variant", {"variant": "inverted_mpp", "slide": "a"})
    assert expected(job, slide("a", 2000, mpx=100)).mpx.expected == pytest.approx(37)


def test_training_counts_all_epochs_and_validations() -> None:
    settings = {"local": {"backbone": NETWORK, "trainer": TRAINER | {"validate_every": 0.5}}}
    job = Job(0, "train_local", params={"models": settings, "slides": [{"slide": "a"}]})
    work = expected(job, slide("a", 1000), slide("b", 1000))
    used = 1000 * 0.93
    train, val = used * 0.5, used * 0.25
    assert work.epochs == Estimate.exactly(4)
    assert work.gflop.expected == pytest.approx(4 * (3 * train + 2 * val) * 370.94)
    assert work.kcells.expected == pytest.approx(4 * (train + 2 * val) / 1000)
    assert work.held_at_once == pytest.approx((train + val) / 1000)
    again = {
        "local": {**settings["local"], "trainer": {**settings["local"]["trainer"], "gradient_checkpointing": True}}
    }
    dearer = expected(replace(job, params={**job.params, "models": again}), slide("a", 1000))
    assert dearer.gflop.expected == pytest.approx(4 * (4 * train + 2 * val) * 370.94)


def test_the_global_model_asks_the_local_one_once() -> None:
    job = Job(0, "train_global", params={"models": {"global": {"trainer": TRAINER}}, "slides": [{"slide": "a"}]})
    train, val = 930 * 0.5, 930 * 0.25
    passes = 4 * (3 * train + val) + train + val
    work = expected(job, slide("a", 1000))
    assert work.gflop.expected == pytest.approx(passes * 370.94)
    assert work.held_at_once == pytest.approx((train + val) / 1000)


def test_the_context_pretraining_holds_each_cell_once() -> None:
    pretrain = {"samples_per_epoch": 100, "trainer": TRAINER}
    job = Job(
        0,
        "pretrain_context",
        params={"models": {"context": {"backbone": NETWORK, "pretrain": pretrain}}, "slides": ["a"]},
    )
    work = expected(job, slide("a", 1000))
    assert work.kcells.expected == pytest.approx(4 * (100 + 930 * 0.25) / 1000)
    assert work.held_at_once == pytest.approx((100 + 930 * 0.25) / 1000)


def test_fusions_are_compared_on_validation_and_cohorts() -> None:
    inputs = [f"results/predictions/local/{name}.parquet" for name in "ah"]
    work = expected(Job(0, "compare_fusions", inputs=inputs), slide("a", 1000), slide("h", 2000, role="cohort"))
    assert work.kcells.expected == pytest.approx((1000 * 0.25 + 2000) * 0.93 / 1000)
    assert work.gflop.expected == 0


@pytest.mark.parametrize(
    ("rule", "operations"),
    [
        ("compute_gradcam", 3 * 370.94 + 2 * 727.19),
        ("compute_controls", 18 * 370.94),
        ("compute_baseline_maps", 8.82),
    ],
)
def test_activation_maps_count_passes_of_the_shown_cells(rule: str, operations: float) -> None:
    more = {"shown": 6, "context_backbone": {"name": "dinov3-vitl16", "input_px": 512}, "names": ["plip"]}
    work = expected(Job(0, rule, params=more), slide("a", 1000))
    assert work.gflop.expected == pytest.approx(6 * operations)
    assert work.kcells.expected == 0


def test_activation_maps_of_large_networks_take_minutes_and_say_what_they_rest_on() -> None:
    files = ["config/config.yaml", "config/paper.yaml"]
    study = load_study(merge_files(files, REPOSITORY), REPOSITORY, files, check_models=parse_models)
    job = with_networks(Job(0, "compute_controls", threads=2), study)
    assert job.params["shown"] == 6
    row = rate_of(read_rates(REPOSITORY / RATES), job.rule, False)
    # 6 cells, 18 passes of 371 GFLOP each, at 55 GFLOP/s.
    assert seconds(row, work_of(job, {}, {}), 2, 0).expected == pytest.approx(11.31 + 6 * 18 * 370.94 / 55)
    assert row.grade == "reckoned"


def test_no_rate_is_of_a_gpu_that_its_rule_does_not_ask_for() -> None:
    asking = {origin(rule) for rule, text in rule_blocks().items() if re.search(r"\bgpu=(?!0\b)", text)}
    dead = {rule for rule, device in read_rates(REPOSITORY / RATES) if device == "gpu" and rule != "*"} - asking
    assert not dead


def test_features_prediction_and_gate_pass_once() -> None:
    a, h = slide("a", 1000), slide("h", 1000, role="cohort")
    context = {"models": {"context": {"backbone": NETWORK, "views": 2}}}
    embedded = expected(Job(0, "embed_context", {"slide": "a"}, params=context), a)
    assert embedded.gflop.expected == pytest.approx(930 * 370.94)
    viewed = expected(Job(0, "embed_training_context", {"slide": "a"}, params=context), a)
    assert viewed.gflop.expected == pytest.approx((930 + 930 * 0.75 * 0.9 * 2) * 370.94)
    assert expected(Job(0, "predict", {"slide": "h"}), h).gflop.expected == pytest.approx(930 * 2 * 370.94)
    assert expected(Job(0, "predict", {"slide": "a"}), a).gflop.expected == pytest.approx(930 * 0.25 * 2 * 370.94)
    alone = Job(0, "predict_local_variant", {"variant": "v"}, params={"names": ["local"], "slides": [{"slide": "h"}]})
    assert expected(alone, h).gflop.expected == pytest.approx(930 * 370.94)
    gate = Job(0, "train_gate", params={"models": {"gate": {"views": 1}}, "slides": [{"slide": "a"}]})
    assert expected(gate, a).gflop.expected == pytest.approx(930 * 0.25 * 2 * 2 * 370.94)


def test_linear_heads_of_baselines_run_no_network() -> None:
    tuned = Job(0, "predict_baseline", params={"names": ["plip_finetuned"], "slides": [{"slide": "h"}]})
    linear = Job(0, "predict_baseline_linear", params={"names": ["plip_linear"], "slides": [{"slide": "h"}]})
    assert expected(tuned, slide("h", 1000, role="cohort")).gflop.expected == pytest.approx(930 * 8.82)
    assert expected(linear, slide("h", 1000, role="cohort")).gflop.expected == 0


def test_early_stopping_is_told_as_a_range() -> None:
    assert epochs({"max_epochs": 8, "patience": 8}) == Estimate.exactly(8)
    assert epochs({"max_epochs": 50, "patience": 4, "validate_every": 0.25}) == Estimate(2, math.sqrt(100), 50)
    assert epochs({"max_epochs": 60, "patience": 10}) == Estimate(11, math.sqrt(660), 60)


def test_memory_does_not_grow_with_epochs() -> None:
    row = rate("r", mb=100, mb_kcell=2)
    job = Job(0, "r", mem_mb=1000)
    assert megabytes(row, Work(kcells=Estimate.exactly(10)), job).expected == 120
    again = Work(kcells=Estimate.exactly(10), epochs=Estimate.exactly(5), held=Estimate.exactly(2))
    assert megabytes(row, again, job).expected == 104
    assert megabytes(row, Work(), job).high == 1000


@pytest.mark.parametrize("name", ["plip", "dinov3-vitl16"])
def test_published_operations_are_those_that_torch_counts(name: str) -> None:
    from nuclass.plan.networks import _counted

    side = 224
    assert _counted(f'{{"name": "{name}", "input_px": {side}}}') == pytest.approx(PUBLISHED[name, side], rel=1e-3)
    assert gflop({"name": name, "input_px": side}) == PUBLISHED[name, side]


def test_longest_chain_and_schedules() -> None:
    jobs, times = chain_of_jobs(), {1: 10.0, 2: 3.0, 3: 4.0, 4: 100.0, 5: 0.0}
    length, path = chain(jobs, times)
    assert length == 114
    assert [job.number for job in path][:3] == [1, 3, 4]
    # One at a time all of them; two at once label_cells a runs beside build_slide b.
    assert run(jobs, times, Limits(jobs=1)).seconds == 117
    course = run(jobs, times, Limits(jobs=2), {1: 5.0, 2: 7.0, 3: 1.0, 4: 9.0})
    assert course.seconds == 114
    assert course.memory == 12
    # Three cores: build_slide b takes all of them, as it asks for more.
    assert run(jobs, times, Limits(cores=3)).seconds == 10 + 4 + 100


def test_gpus_are_shared() -> None:
    jobs = [Job(0, "t", gpus=1), Job(1, "t", gpus=1), Job(2, "t", gpus=1)]
    times = {0: 5.0, 1: 5.0, 2: 5.0}
    assert run(jobs, times, Limits(gpus=2)).seconds == 10
    assert run(jobs, times, Limits()).seconds == 5


def test_sums_of_a_plan(tmp_path: Path) -> None:
    files = ["config/config.yaml"]
    study = load_study(merge_files(files, REPOSITORY), REPOSITORY, files, check_models=parse_models)
    names = {"a": "ovary_1", "b": "lung_1"}
    jobs = [
        replace(job, wildcards={key: names[value] for key, value in job.wildcards.items()}) for job in chain_of_jobs()
    ]
    local = {"local": {"backbone": NETWORK, "trainer": TRAINER}}
    jobs[4] = replace(jobs[4], params={"models": local, "slides": [{"slide": "ovary_1"}]})
    table = rates(
        rate("build_slide", fixed_s=36),
        rate("label_cells", fixed_s=18, grade="demo"),
        rate("train_local", "gpu", fixed_s=360, grade="reckoned"),
        rate("@start", fixed_s=1),
    )
    plan = make_plan(study, jobs, table, tmp_path, ["models"], Limits(jobs=1))
    assert {stage.name: (stage.jobs, stage.done) for stage in plan.stages} == {
        "Data": (2, 1),
        "Labels and splits": (2, 0),
        "Trainings": (1, 0),
    }
    # 36 s of 4 cores, twice 18 s of one, 360 s of 8 cores and 2 GPUs.
    assert plan.core_hours.expected == pytest.approx((36 * 4 + 2 * 18 + 360 * 8) / 3600)
    assert plan.gpu_hours.expected == pytest.approx(720 / 3600)
    assert plan.chain.expected == pytest.approx(36 + 18 + 360 + 3)
    assert plan.wall["1 job"].expected == pytest.approx(36 + 2 * 18 + 360 + 4)
    assert plan.grades()["gpus"] == {"reckoned": 1.0}
    text = as_text(plan)
    assert "RECKONED, never measured" in text
    assert "build_slide lung_1 > label_cells lung_1 > train_local" in text
    told = {(row[0], row[1]): row for row in as_rows(plan)}
    assert float(told["gpus", "total"][4]) == pytest.approx(0.2)
    assert len(as_json(plan)["jobs"]) == 4
    assert plan.needs.to_free.expected > 1e8
    done = make_plan(study, [replace(job, needed=False) for job in jobs], table, tmp_path, ["models"])
    assert done.needs.to_free == done.core_hours == NOTHING
    assert done.needs.kept == plan.needs.kept


def test_stages_and_derived_rules() -> None:
    assert stage_of("train_local") == "Trainings"
    assert stage_of("embed_training_context") == "Context features"
    assert stage_of("train_local_variant") == "Ablations and audit"
    assert stage_of("draw_umap") == "Evaluation, figures, tables"
    assert origin("embed_gate_context_variant") == "embed_context"
    assert origin("predict_local_variant") == "predict"


def test_every_rule_has_a_rate() -> None:
    known = read_rates(REPOSITORY / RATES)
    other = {"plan_study", "examine_study"}
    lacking = [rule for rule in rule_blocks() if rate_of(known, rule, False).rule == "*" and rule not in other]
    assert not lacking, f"resources/rates.tsv has no row for {', '.join(lacking)}"


def test_rates_are_read_as_they_are_written(tmp_path: Path) -> None:
    known = read_rates(REPOSITORY / RATES)
    write_rates(tmp_path / "again.tsv", known, "a remark")
    assert read_rates(tmp_path / "again.tsv") == known


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("\t5\t", "\tfive\t"), "no number"),
        (("\t5\t", "\t-5\t"), "no number"),
        (("measured", "guessed"), "not known"),
        (("\tcpu", "\ttpu"), "not known"),
        (("\tby hand", ""), "short"),
        (("fixed_s", "start_s"), "other columns"),
    ],
)
def test_faults_of_rates_are_told(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    file = tmp_path / "rates.tsv"
    write_rates(file, {("r", "cpu"): rate("r", fixed_s=5)}, "")
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(UserError, match=told):
        read_rates(file)
    with pytest.raises(UserError, match="missing"):
        read_rates(tmp_path / "none.tsv")


def benchmark(root: Path, job: Job, taken: float, mib: float = 100.0) -> None:
    file = root / job.benchmark
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"s\th:m:s\tmax_rss\n{taken}\t0:00:01\t{mib}\n")


def test_alike_jobs_scale_a_rate(tmp_path: Path) -> None:
    files = ["config/config.yaml"]
    study = load_study(merge_files(files, REPOSITORY), REPOSITORY, files, check_models=parse_models)
    jobs = [Job(n, "draw_labels", {"slide": s}, benchmark=f"b/{s}.tsv") for n, s in enumerate(("ovary_1", "lung_1"))]
    for job in jobs:
        benchmark(tmp_path, job, 30.0)
    # 2,055 cells each: 1 + 2.055 x 2 s were planned.
    learned = learn(study, jobs, rates(rate("draw_labels", fixed_s=1, kcell_s=2)), tmp_path)["draw_labels", "cpu"]
    assert learned.grade == "learned"
    assert learned.fixed_s == pytest.approx(30 / 5.11)
    assert learned.kcell_s == pytest.approx(2 * 30 / 5.11)
    assert learned.mb == pytest.approx(100 * 1.048576)
    write_learned(tmp_path / "own.tsv", {("draw_labels", "cpu"): learned})
    assert read_rates(tmp_path / "own.tsv")["draw_labels", "cpu"].kcell_s == pytest.approx(learned.kcell_s, rel=1e-4)


def test_jobs_of_many_sizes_tell_how_a_rule_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["config/config.yaml"]
    study = load_study(merge_files(files, REPOSITORY), REPOSITORY, files, check_models=parse_models)
    sizes = {name: slide(name, cells) for name, cells in zip("abcd", (1e3, 1e4, 5e4, 1e5), strict=True)}
    monkeypatch.setattr(
        "nuclass.plan.learn.study_needs", lambda *_: type("N", (), {"slides": sizes, "downloads": ()})()
    )
    jobs = [Job(n, "label_cells", {"slide": s}, benchmark=f"b/{s}.tsv") for n, s in enumerate(sizes)]
    for job in jobs:
        benchmark(tmp_path, job, 4 + 0.3 * sizes[job.wildcards["slide"]].cells.expected / 1000)
    learned = learn(study, jobs, rates(rate("label_cells", fixed_s=50, kcell_s=9)), tmp_path)["label_cells", "cpu"]
    assert learned.fixed_s == pytest.approx(4, rel=1e-3)
    assert learned.kcell_s == pytest.approx(0.3, rel=1e-3)


def test_downloads_are_learned_by_all_their_bytes(tmp_path: Path) -> None:
    files = ["config/config.yaml", "config/paper.yaml"]
    study = load_study(merge_files(files, REPOSITORY), REPOSITORY, files, check_models=parse_models)
    job = Job(0, "fetch_bundle", {"slide": "breast_1"}, benchmark="b/breast_1.tsv")
    mb = downloads_of(study_needs(study, tmp_path), whole=True)["breast_1"].expected * 1e-6
    benchmark(tmp_path, job, 10 + 0.1 * mb)
    learned = learn(study, [job], rates(rate("fetch_bundle", fixed_s=10, mb_s=0.05)), tmp_path)["fetch_bundle", "cpu"]
    factor = (10 + 0.1 * mb) / (10 + 0.05 * mb)
    assert factor < 2
    assert (learned.fixed_s, learned.mb_s) == pytest.approx((10 * factor, 0.05 * factor))
    # Once the bundle is here nothing is left to come; its time still tells of all of it.
    folder = tmp_path / "resources/bundles/breast_1"
    folder.mkdir(parents=True)
    source = study.slides.loc["breast_1", "dataset"]
    (folder / "bundle.json").write_text(f'{{"source": "{source}"}}')
    again = learn(study, [job], rates(rate("fetch_bundle", fixed_s=10, mb_s=0.05)), tmp_path)["fetch_bundle", "cpu"]
    assert downloads_of(study_needs(study, tmp_path))["breast_1"].expected == 0
    assert again == learned


def test_memory_of_trainings_is_learned_without_their_epochs(tmp_path: Path) -> None:
    files = ["config/config.yaml"]
    study = load_study(merge_files(files, REPOSITORY), REPOSITORY, files, check_models=parse_models)
    local = {"local": {"backbone": NETWORK, "trainer": {"max_epochs": 40, "patience": 40}}}
    job = Job(0, "train_local", params={"models": local, "slides": ["ovary_1"]}, benchmark="b/all.tsv")
    benchmark(tmp_path, job, 60.0, mib=1000.0)
    old = rate("train_local", fixed_s=5, kcell_s=1, mb=500, mb_kcell=100)
    learned = learn(study, [job], rates(old), tmp_path)["train_local", "cpu"]
    work = work_of(with_networks(job, study), study_needs(study, tmp_path).slides, {})
    assert work.kcells.expected > 40
    assert megabytes(learned, work, job).expected == pytest.approx(1048.576)


@pytest.mark.parametrize(
    ("rule", "said", "history", "taken"),
    [
        # The last of three attempts took 60 s, all of them 500; or there was one only, with its start.
        ("train_local", "local model: going on from epoch 3, optimizer step 40, in work", [100.0, 500.0], 500.0),
        ("train_local", "", [20.0, 50.0], 60.0),
        ("train_gate_variant", "gate: training was finished before", [500.0], 500.0),
        # What came before is told nowhere.
        ("train_gate", "rows: 10 of 20 rows are there from an earlier run", [500.0], None),
        ("pretrain_context", "context: going on from epoch 1, optimizer step 2, in work", None, None),
        ("train_baseline_linear", "", [100.0, 500.0], 60.0),
        ("embed_context", "Going on from cell 4096 of 9000", None, None),
        ("embed_context", "Going on from cell 0 of 9000", None, 60.0),
        ("predict", "work: 5 of 9 rows are there from an earlier run", None, None),
        ("predict", "predict finished in 60.0 s", None, 60.0),
    ],
)
def test_jobs_that_went_on_are_known_by_all_their_attempts(
    tmp_path: Path, rule: str, said: str, history: list[float] | None, taken: float | None
) -> None:
    job = Job(0, rule, benchmark="b/all.tsv", log="log.txt", outputs=["out/best.ckpt", "out/history.csv"])
    benchmark(tmp_path, job, 60.0)
    (tmp_path / "log.txt").write_text(f"a line\n2026 INFO nuclass: {said}\n")
    if history is not None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/history.csv").write_text("step,seconds\n" + "".join(f"1,{row}\n" for row in history))
    found = measured_of(job, tmp_path)
    assert (found and found[0]) == taken


def test_what_jobs_that_went_on_say() -> None:
    """The words that are looked for are those of the logs."""
    words = {"training/fit.py": ["going on from epoch", "training was finished before"]}
    words |= {
        "data/feature_cache.py": ["Going on from cell %d of"],
        "training/row_store.py": ["there from an earlier run"],
    }
    for file, parts in words.items():
        text = (REPOSITORY / "src/nuclass" / file).read_text()
        assert all(part in text for part in parts), file


def test_nothing_finished_is_told(tmp_path: Path) -> None:
    files = ["config/config.yaml"]
    study = load_study(merge_files(files, REPOSITORY), REPOSITORY, files, check_models=parse_models)
    with pytest.raises(UserError, match="Nothing can be learned"):
        learn(study, [Job(0, "all", benchmark="b/none.tsv")], rates(), tmp_path)
    (tmp_path / "half.tsv").write_text("s\th:m:s\n")
    assert read_benchmark(tmp_path / "half.tsv") is None
