"""Measure the demo in a fresh folder: wall time, peak memory of all its processes, time a rule (make bench)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("config", "envs", "profiles", "resources", "rules", "scripts", "src", "workflow", "pyproject.toml")


def resident_mb(leader: int) -> float:
    """Return the memory of a process and all its descendants, MB, each shared page counted once a process's share."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
            except OSError:
                continue
    todo, total = [leader], 0.0
    while todo:
        process = todo.pop()
        todo.extend(children.get(process, ()))
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        except (OSError, StopIteration):
            continue
    return total


def watch(leader: int, peak: list[float], done: threading.Event) -> None:
    """Keep the highest memory seen in ``peak``, looked at twice a second."""
    while not done.wait(0.5):
        peak[0] = max(peak[0], resident_mb(leader))


def rule_times(folder: Path) -> dict[str, dict[str, float]]:
    """Return jobs, seconds and highest memory of every rule, from Snakemake's benchmark files."""
    import pandas as pd

    times = {}
    for rule in sorted(path for path in (folder / "benchmarks").iterdir() if path.is_dir()):
        frames = [pd.read_csv(path, sep="\t", na_values="-") for path in rule.glob("*.tsv")]
        if frames:
            table = pd.concat(frames)
            times[rule.name] = {
                "jobs": len(table),
                "seconds": round(float(table["s"].sum()), 1),
                "longest_s": round(float(table["s"].max()), 1),
                "memory_mb": round(float(table["max_rss"].max()), 0),
            }
    return times


def main() -> None:
    """Run the demo once and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "demo.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nuclass-bench-") as temporary:
        folder = Path(temporary)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("bundles", "truth", "__pycache__"))
            else:
                shutil.copy2(source, folder / name)
        command = [sys.executable, "-m", "snakemake", "--cores", str(options.cores)]
        environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
        start, peak, done = time.monotonic(), [0.0], threading.Event()
        process = subprocess.Popen(command, cwd=folder, env=environment)
        watcher = threading.Thread(target=watch, args=(process.pid, peak, done))
        watcher.start()
        status = process.wait()
        done.set()
        watcher.join()
        if status != 0:
            sys.exit("The demo failed; see the messages above.")
        result = {
            "cores": options.cores,
            "seconds": round(time.monotonic() - start, 1),
            "peak_memory_mb": round(peak[0]),
            "disk_mb": round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6),
            "rules": rule_times(folder),
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{result['seconds']} s, {result['peak_memory_mb']} MB at most; details in {options.out}\n")


if __name__ == "__main__":
    main()
