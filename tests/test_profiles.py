"""What the workflow asks of a cluster, and what the Slurm profile makes of it. No Slurm is needed."""

from __future__ import annotations

from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path
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


def test_memory_counts_snakemake_and_what_is_read(copy: Path) -> None:
    goal = "results/labels/ovary_1/labelling.png"
    small = next(job for job in laid_out(copy, "config/config.yaml", goal) if job["rule"] == "draw_labels")
    table = copy / "results/labels/ovary_1/labels.parquet"
    table.parent.mkdir(parents=True)
    with table.open("wb") as stream:
        stream.truncate(300 * 2**20)
    large = next(job for job in laid_out(copy, "config/config.yaml", goal) if job["rule"] == "draw_labels")
    assert small["resources"][0]["mem_mb"] == 1400
    assert large["resources"][0]["mem_mb"] == 1400 + 10 * 300


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
