"""The machine: processors, memory, disks, limits, and what its file systems can do."""

from __future__ import annotations

import locale
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from nuclass.core.progress import readable_bytes
from nuclass.doctor.asked import read_rules
from nuclass.doctor.case import REPOSITORY, Case
from nuclass.doctor.exam import Check, Finding, failed, passed, skipped, warned

LEAST_OPEN_FILES = 1024
LEAST_SHARED = 1_000_000_000
LEAST_INODES = 100_000
GROUPS, GROUP_FILES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
MOUNTS = Path("/proc/self/mounts")
_NETWORK_DISKS = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "afs")


def system(case: Case) -> Finding:
    """Linux is what the workflow was tried on."""
    told = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform == "linux":
        return passed(told)
    return warned(told, "the workflow was tried on Linux only; on Windows use WSL")


def cores() -> int:
    """Return the processors this process may use, by its affinity and its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):
        return allowed


def memory(environ: Mapping[str, str]) -> int:
    """Return the memory in bytes that this process may use: the machine's, or less by its control groups or its job."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    of_job = environ.get("SLURM_MEM_PER_NODE", "")
    # 0 is all that the node has.
    job = [int(of_job) << 20] if of_job.isdigit() and int(of_job) else []
    return min([total, *job, *_group_limits()])


def _group_limits() -> Iterator[int]:
    """Yield the limits of memory of this process's control group and of those above it, of both versions."""
    try:
        lines = GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    # Where the groups are not told, or those of a container have another path outside, the topmost are looked at.
    for line in [*lines, "0::/", "0:memory:/"]:
        _, kinds, path = [*line.split(":", 2), "", ""][:3]
        if kinds and "memory" not in kinds.split(","):
            continue
        top, name = (GROUP_FILES / "memory", "memory.limit_in_bytes") if kinds else (GROUP_FILES, "memory.max")
        place = PurePosixPath(path.lstrip("/"))
        for folder in (place, *place.parents):
            try:
                yield int((top / folder / name).read_text(encoding="ascii"))
            except (OSError, ValueError):
                continue


def _at_cluster(case: Case) -> bool:
    from nuclass.doctor.commands import find

    return find("sbatch", case.environ) is not None


def processors(case: Case) -> Finding:
    """Rules with more threads than there are run with fewer, in more time."""
    there = cores()
    asked = {name: rule.threads for name, rule in read_rules(REPOSITORY / "rules").items() if rule.threads}
    most = max(asked, key=lambda name: asked[name] or 0, default="")
    told = f"{there} for this process" + (f"; the most a rule asks for is {asked[most]} ({most})" if most else "")
    if there == 1 and not _at_cluster(case):
        return warned(told, "one core is enough for the demo, in about twice the time: snakemake --cores 1 demo")
    return passed(told)


def main_memory(case: Case) -> Finding:
    """Memory against the rule that needs most, as far as the rules say a number."""
    there = memory(case.environ)
    asked = {name: rule.memory_mb for name, rule in read_rules(REPOSITORY / "rules").items() if rule.memory_mb}
    most = max(asked, key=lambda name: asked[name] or 0, default="")
    needed, rule = (asked[most] or 0, most) if most else (0, "")
    if case.sound:
        more = _least_of_study(case)
        needed, rule = max((needed, rule), more)
    told = (
        f"{readable_bytes(there)}; of the rules that name a number the largest asks for at least "
        f"{readable_bytes(needed * 1e6)} ({rule}), those that reckon theirs may ask for more"
    )
    if there >= needed * 1e6:
        return passed(told)
    if case.environ.get("SLURM_JOB_ID"):
        return warned(
            f"{told}; this is what the job of Slurm has that the doctor runs in",
            f"to run the study inside of such a job: --mem={math.ceil(needed / 1000)}G or more; "
            "jobs of snakemake --profile slurm ask for theirs",
        )
    if _at_cluster(case):
        return passed(f"{told}, on the cluster's nodes")
    return failed(told, "take a machine with more memory, or send the jobs to a cluster: snakemake --profile slurm")


def _least_of_study(case: Case) -> tuple[int, str]:
    """Return memory in MB and rule of the most that the study's slides and networks need, by the rules' own bases."""
    from nuclass.core.patch_rows import PATCHES
    from nuclass.doctor.networks import uses_of

    sources = set(case.study.slides["source"])
    real = bool(sources - {"synthetic", PATCHES})
    large = any(use.large for use in uses_of(case.study.models) if use.part == "local")
    return max((8000 if real else 1500, "build_slide"), (24000 if large else 2500, "train_local"))


def places(case: Case) -> dict[str, Path]:
    """Return the folders the study writes to, by name, each as far as it is there."""
    temporary = Path(case.environ.get("TMPDIR") or "/tmp")
    return {
        "results/": case.nearest("results"),
        "work/": case.nearest("work"),
        "resources/": case.nearest("resources/bundles"),
        "TMPDIR": temporary,
    }


def temporary_folder(case: Case) -> Finding:
    """The folder for temporary files."""
    place = places(case)["TMPDIR"]
    if not place.is_dir():
        return failed(f"TMPDIR is {place}, which is no folder", f"mkdir -p {place}   or: unset TMPDIR")
    if not os.access(place, os.W_OK | os.X_OK):
        return failed(f"TMPDIR is {place}, where you may not write", "export TMPDIR=/a/folder/of/yours")
    free = shutil.disk_usage(place).free
    if free < 2e9:
        return warned(
            f"{readable_bytes(free)} are free in {place}", "export TMPDIR=/a/larger/disk   (or free some space)"
        )
    return passed(f"{place}, {readable_bytes(free)} free")


def inodes(case: Case) -> Finding:
    """Files that may still be made; a slide store and its tables are some hundred files a slide."""
    lowest: tuple[int, str] | None = None
    for name, place in places(case).items():
        if not place.is_dir():
            continue
        facts = os.statvfs(place)
        if facts.f_files:
            lowest = min(lowest or (facts.f_favail, name), (facts.f_favail, name))
    if lowest is None:
        return passed("these file systems count none")
    told = f"{lowest[0]:,} more files fit under {lowest[1]}"
    if lowest[0] < 1000:
        return failed(told, "delete files there, or take another disk; quotas of files count as well")
    if lowest[0] < LEAST_INODES:
        return warned(told, f"a large study can make {LEAST_INODES:,} files: delete some, or ask for a larger quota")
    return passed(told)


def open_files(case: Case) -> Finding:
    """The limit of open files, which reading processes of a training reach first."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft == resource.RLIM_INFINITY or soft >= LEAST_OPEN_FILES:
        return passed(f"{words} at once")
    able = hard == resource.RLIM_INFINITY or hard >= LEAST_OPEN_FILES
    remedy = (
        "ulimit -n 4096" if able else f"ask for a higher limit than {hard}; until then workers: 0 in the models' file"
    )
    return (warned if soft >= 256 else failed)(f"{words} at once, of {LEAST_OPEN_FILES:,} wanted", remedy)


def shared_memory(case: Case) -> Finding:
    """Where reading processes hand over batches; too little of it ends in a bus error."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return skipped("this system has no /dev/shm")
    free = shutil.disk_usage(place).free
    told = f"{readable_bytes(free)} free in {place}"
    workers = _most_workers(case)
    if free >= LEAST_SHARED or workers == 0:
        return passed(told)
    return warned(
        f"{told}, for {workers} reading processes",
        "in a container: --shm-size=8g (docker) or --bind a larger folder there; else workers: 0 in the models' file",
    )


def _most_workers(case: Case) -> int:
    if not case.sound:
        return 0
    models = case.study.models
    found = [models.get("context", {}).get("workers", 0)]
    found += [models.get(name, {}).get("trainer", {}).get("workers", 0) for name in ("local", "global")]
    return max(int(value or 0) for value in found)


def text_encoding(case: Case) -> Finding:
    """UTF-8, for names of files and of genes."""
    names = {"file names": sys.getfilesystemencoding(), "texts": locale.getpreferredencoding(False)}
    wrong = {name: value for name, value in names.items() if value.lower().replace("-", "") != "utf8"}
    if wrong:
        told = ", ".join(f"{name} in {value}" for name, value in wrong.items())
        return warned(told, "export LC_ALL=C.UTF-8")
    return passed("UTF-8")


def new_files(case: Case) -> Finding:
    """Rights that new files get (umask)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return skipped("not told by this system")
    match = re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)
    if not match:
        return skipped("not told by this system")
    mask = int(match[1], 8)
    told = f"umask {match[1]}"
    if mask & 0o700:
        return failed(f"{told}: you could not read or write your own new files", "umask 022")
    if not mask & 0o002:
        return warned(f"{told}: anybody may change your results", "umask 022, or 027 for a group")
    return passed(told + (": nobody else can read your results" if mask & 0o077 == 0o077 else ""))


def kind_of_disk(place: Path) -> str:
    """Return the type of the file system that a folder lies on, empty where it is not told."""
    best, kind = "", ""
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    target = str(place.resolve())
    for line in mounts:
        words = line.split()
        if len(words) < 3:
            continue
        point = words[1].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, words[2]
    return kind


def disk_kind(case: Case) -> Finding:
    """Local disk or network disk."""
    kinds = {name: kind_of_disk(place) for name, place in places(case).items() if place.is_dir()}
    told = ", ".join(f"{name} {kind or 'not told'}" for name, kind in kinds.items())
    if kinds.get("TMPDIR") in _NETWORK_DISKS:
        return warned(told, "export TMPDIR=/a/local/disk   (temporary files on a network disk are slow)")
    return passed(told)


CHECKS = [
    Check("machine", "system", system),
    Check("machine", "processors", processors),
    Check("machine", "memory", main_memory, 30.0),
    Check("machine", "open files", open_files),
    Check("machine", "shared memory", shared_memory, 30.0),
    Check("machine", "text", text_encoding),
    Check("machine", "rights of new files", new_files),
    Check("machine", "kind of disk", disk_kind),
    Check("machine", "number of files", inodes),
    Check("machine", "temporary files", temporary_folder),
]
