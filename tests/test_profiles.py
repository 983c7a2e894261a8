"""What the workflow asks of a cluster, and what the Slurm profile makes of it. No Slurm is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from laid_out_jobs import laid_out
from test_workflow import REPOSITORY, copy, rule_blocks

__all__ = ["copy"]
pytestmark = pytest.mark.workflow
Jobs = list[dict[str, Any]]
PROFILE = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
WITHOUT_GROWTH = {"fetch_bundle", "write_methods", "record_provenance", "render_report"}
"""Rules whose memory does not follow from what they read."""
NETWORKS = {
    *("embed_context", "embed_training_context", "train_local", "train_global", "train_gate", "predict"),
    *("embed_baseline", "train_baseline_linear", "train_baseline_finetuned", "predict_baseline"),
    *("embed_context_variant", "embed_training_context_variant", "embed_gate_context_variant"),
    *("train_local_variant", "train_global_variant", "train_gate_variant", "predict_variant", "predict_local_variant"),
}


GOES_ON = (NETWORKS - {"train_baseline_linear"}) | {"fetch_bundle"}
"""Rules that go on where they were: their time limits stay."""
A_DAY = 1440


@pytest.fixture(scope="module")
def paper() -> Jobs:
    return laid_out(REPOSITORY, "config/paper.yaml", "all", attempts=4)


@pytest.fixture(scope="module")
def demo() -> Jobs:
    return laid_out(REPOSITORY, "config/config.yaml", "all")


def parts(jobs: Jobs, components: dict[str, int]) -> list[set[int]]:
    """Return the jobs that share a cluster job: connected ones of a group, so many such parts in one; others alone."""
    root = list(range(len(jobs)))

    def find(number: int) -> int:
        while root[number] != number:
            number = root[number]
        return number

    for number, job in enumerate(jobs):
        for other in job["before"]:
            if job["group"] and job["group"] == jobs[other]["group"]:
                root[find(number)] = find(other)
    together: dict[int, set[int]] = defaultdict(set)
    for number in range(len(jobs)):
        together[find(number)].add(number)
    merged: list[set[int]] = []
    by_group: dict[str, list[set[int]]] = defaultdict(list)
    for part in together.values():
        group = jobs[min(part)]["group"]
        (by_group[group] if group else merged).append(part)
    for group, some in by_group.items():
        size = components.get(group, 1)
        merged += [set().union(*some[start : start + size]) for start in range(0, len(some), size)]
    return merged


def group_sizes() -> dict[str, int]:
    return {name: int(size) for name, size in (entry.split("=") for entry in PROFILE["group-components"])}


def test_every_job_says_what_it_needs(paper: Jobs, demo: Jobs) -> None:
    for job in [*paper, *demo]:
        if not job["local"]:
            asked = job["resources"][0]
            assert isinstance(asked.get("runtime"), int), job["rule"]
            # Memory of trainings follows from the cells, known when these are there.
            assert isinstance(asked["mem_mb"], int) or "train_" in job["rule"], job["rule"]


def test_only_large_networks_ask_for_a_gpu(paper: Jobs, demo: Jobs) -> None:
    asking = {job["rule"] for job in paper if job["resources"][0].get("gpu", 0) > 0}
    assert asking == NETWORKS & {job["rule"] for job in paper}
    assert len(asking) >= 14
    assert not [job["rule"] for job in demo if job["resources"][0].get("gpu", 0) > 0]


def test_what_asks_for_a_gpu_shares_its_job_with_nothing(paper: Jobs) -> None:
    assert not [job["rule"] for job in paper if job["resources"][0].get("gpu", 0) and job["group"]]


def test_memory_grows_with_each_attempt_to_an_end(paper: Jobs) -> None:
    for job in paper:
        asked = [resources["mem_mb"] for resources in job["resources"] if isinstance(resources.get("mem_mb"), int)]
        if job["local"] or not asked or job["rule"] in WITHOUT_GROWTH:
            continue
        assert asked[0] < asked[1] <= asked[2] == asked[3], job["rule"]
        assert asked[3] <= 4 * asked[0]


def test_time_limits_grow_with_each_attempt_unless_the_job_goes_on(paper: Jobs) -> None:
    for job in paper:
        if job["local"]:
            continue
        asked = [resources["runtime"] for resources in job["resources"]]
        if job["rule"] in GOES_ON:
            assert len(set(asked)) == 1, job["rule"]
            continue
        assert asked[0] < asked[1] <= asked[2] == asked[3] <= 3 * asked[0], job["rule"]
        assert asked[3] <= A_DAY


def requests(small: bool = False) -> dict[str, Any]:
    """Return the functions of rules/requests.smk, for a slide that is small or not."""
    names: dict[str, Any] = {"json": json, "Path": Path, "is_small": lambda wildcards: small}
    exec((REPOSITORY / "rules/requests.smk").read_text(encoding="utf-8"), names)
    return names


def test_a_limit_beyond_a_day_stays() -> None:
    grown = requests()["grown"]
    assert [grown(10, attempt) for attempt in (1, 2, 3, 4)] == [10, 20, 30, 30]
    assert [grown(600, attempt) for attempt in (1, 2, 3)] == [600, 1200, A_DAY]
    assert [grown(2000, attempt) for attempt in (1, 2, 3)] == [2000, 2000, 2000]


def test_time_of_a_slide_grows_with_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slide = SimpleNamespace(slide="lung_1")
    limit = requests()["slide_minutes"](120, per_gb=10)
    assert limit(slide, 1) == 120, "nothing is fetched yet"
    folder = tmp_path / "resources/bundles/lung_1"
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text(json.dumps({"he": "he.tif"}), encoding="utf-8")
    with (folder / "he.tif").open("wb") as stream:
        stream.truncate(2 * 2**30)
    assert [limit(slide, attempt) for attempt in (1, 2, 9)] == [140, 280, 420]
    (folder / "bundle.json").write_text("", encoding="utf-8")
    assert limit(slide, 1) == 120, "the job itself tells what is wrong with the file"
    small = requests(small=True)["slide_minutes"](120, per_gb=10)
    assert [small(slide, attempt) for attempt in (1, 2, 9)] == [15, 30, 45]


def test_of_predictions_only_the_tables_count_for_the_time(tmp_path: Path) -> None:
    class Inputs(list):
        def get(self, name: str, default: object) -> object:
            return getattr(self, name, default)

    for name in ("table", "checkpoint"):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(2**30)
    inputs = Inputs([tmp_path / "table", tmp_path / "checkpoint"])
    limit = requests()["minutes"](60, per_gb=30)
    assert limit(None, inputs, 1) == 120
    inputs.tables = [tmp_path / "table"]
    assert [limit(None, inputs, attempt) for attempt in (1, 2)] == [90, 180]


def test_reading_processes_of_predictions_are_asked_for(paper: Jobs, demo: Jobs) -> None:
    readers, cache_mb = 8, 64
    rules = {"predict", "predict_variant", "predict_local_variant", "predict_baseline"}
    found = [job for job in paper if job["rule"] in rules]
    assert {job["rule"] for job in found} == rules
    for job in found:
        assert job["threads"] == 1 + readers
        assert job["resources"][0]["mem_mb"] > 12000 + readers * (500 + cache_mb)
    assert {job["threads"] for job in paper if job["rule"] == "train_gate"} == {2 + readers}
    assert {job["threads"] for job in paper if job["rule"] == "predict_baseline_linear"} == {1}, "from features"
    assert {job["threads"] for job in demo if job["rule"] in {*rules, "train_gate"}} == {1}


def test_memory_and_time_count_what_is_read(copy: Path) -> None:
    goal = "results/labels/ovary_1/labelling.png"
    small = next(job for job in laid_out(copy, "config/config.yaml", goal) if job["rule"] == "draw_labels")
    table = copy / "results/labels/ovary_1/labels.parquet"
    table.parent.mkdir(parents=True)
    with table.open("wb") as stream:
        stream.truncate(300 * 2**20)
    large = next(job for job in laid_out(copy, "config/config.yaml", goal) if job["rule"] == "draw_labels")
    assert small["resources"][0]["mem_mb"] == 1400
    assert large["resources"][0]["mem_mb"] == 1400 + 10 * 300
    assert (small["resources"][0]["runtime"], large["resources"][0]["runtime"]) == (10, 10 + 9)


@pytest.mark.parametrize("study", ["paper", "demo"])
def test_no_group_waits_for_itself(study: str, request: pytest.FixtureRequest) -> None:
    """Not even where all chains of a group are one cluster job, and not by way of other groups."""
    jobs: Jobs = request.getfixturevalue(study)
    place = {number: job["group"] or number for number, job in enumerate(jobs)}
    waits: dict[Any, set[Any]] = defaultdict(set)
    for number, job in enumerate(jobs):
        waits[place[number]] |= {place[other] for other in job["before"]} - {place[number]}
    list(TopologicalSorter(waits).static_order())


def test_short_jobs_share_cluster_jobs(demo: Jobs, paper: Jobs) -> None:
    assert "lanes=1" in PROFILE["resources"], "jobs that share a cluster job run one after the other"
    for jobs, share in ((demo, 0.4), (paper, 0.8)):
        alone = [number for number, job in enumerate(jobs) if not job["local"]]
        shared = [part for part in parts(jobs, group_sizes()) if not jobs[min(part)]["local"]]
        assert len(shared) <= share * len(alone)
        for part in shared:
            minutes = sum(jobs[number]["resources"][0]["runtime"] for number in part)
            assert len(part) == 1 or minutes <= 8 * 60, jobs[min(part)]["group"]


def test_groups_of_the_profile_are_those_of_the_rules(demo: Jobs, paper: Jobs) -> None:
    known = {job["group"] for job in [*demo, *paper]} - {None}
    assert set(group_sizes()) == known - {"alignment", "labels"}


def test_long_trainings_are_told_before_their_time_is_over(paper: Jobs) -> None:
    told = {rule for rule, asked in PROFILE["set-resources"].items() if "TERM@" in asked.get("slurm_extra", "")}
    training = {job["rule"] for job in paper if job["rule"].startswith(("train_local", "train_global", "train_gate"))}
    assert told == training | {"train_baseline_finetuned"}
    assert set(PROFILE["set-resources"]) <= set(rule_blocks())
    assert {job["rule"] for job in paper if job["resources"][0].get("gpu", 0)} <= set(PROFILE["set-resources"])


def test_the_default_profile_leaves_the_machine_to_others() -> None:
    default = yaml.safe_load((REPOSITORY / "profiles/default/config.yaml").read_text(encoding="utf-8"))
    assert not set(default) & set(PROFILE), "its values win over those of the Slurm profile"
    test = yaml.safe_load((REPOSITORY / "tests/slurm/profile/config.yaml").read_text(encoding="utf-8"))
    wanted = {key: value for key, value in default.items() if key != "printshellcmds"}
    assert {key: test.get(key) for key in wanted} == wanted


def test_every_line_of_the_profile_is_explained() -> None:
    text = (REPOSITORY / "profiles/slurm/config.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    for key in PROFILE:
        number = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert "#" in lines[number] or lines[number - 1].startswith("#"), f"{key} has no comment"


def test_jobs_that_wait_for_a_gpu_keep_no_others_from_being_submitted(paper: Jobs) -> None:
    waiting = [job for job in paper if job["resources"][0].get("gpu", 0)]
    assert PROFILE["jobs"] > len(waiting)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as somebody else gets it."""
    folder = tmp_path_factory.mktemp("clone") / "nuclass"
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(folder)], check=True)
    return folder


@pytest.mark.parametrize(
    ("more", "source"), [((), "fetch_bundle"), (("--configfile", "config/config.yaml"), "simulate_bundle")]
)
def test_the_literal_command_runs_in_a_fresh_clone(clone: Path, more: tuple[str, ...], source: str) -> None:
    """A dry run asks for the plugin, not for Slurm."""
    assert (clone / "slurm").is_symlink()
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SNAKEMAKE_PROFILE")}
    call = [sys.executable, "-m", "snakemake", "--profile", "slurm", "-n", "all", *more]
    done = subprocess.run(call, cwd=clone, env=kept, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-3000:]
    assert "Using profiles slurm and" in told
    for rule in (source, "train_local", "render_report"):
        assert re.search(rf"^{rule} +\d+$", told, re.MULTILINE), rule
