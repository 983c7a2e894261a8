"""Label slides of growing size: time, peak memory and macro-F1, each way in a process of its own.

    python benchmarks/bench_labels.py [--cells 20000 100000 300000 600000] [--genes 400]

Draws counts of a section of the breast: types from the marker table, each with its positive markers at uneven strength
over what every cell expresses, in patches of tissue, with 12 % of the transcripts spilt to a neighbour. `nuclass` is
the assignment of this project. `scanpy` is the usual recipe on the same table: normalise, log, principal components,
neighbours, one Leiden clustering, `score_genes` of the same positive markers, each cluster named after the score that
is highest on average. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
ORGAN, SPILL, SPACING_UM = "breast", 0.12, 10.0
WAYS = ("nuclass", "scanpy")


def draw(file: Path, n: int, n_genes: int) -> None:
    """Write counts (h5ad) of ``n`` cells with places and true types."""
    import anndata
    from scipy import sparse
    from scipy.spatial import cKDTree

    from nuclass.labels.markers import load_markers, marker_sets

    rng = np.random.default_rng(n)
    table = load_markers(ROOT / "resources/markers/markers.tsv")
    every = sorted(set(table["gene"]))
    sets, _ = marker_sets(table, ORGAN, every)
    genes = [*rng.permutation(every)[: int(0.75 * n_genes)]]
    genes += [f"GENE{k}" for k in range(n_genes - len(genes))]
    profile = np.tile(rng.lognormal(-1.5, 1.0, n_genes), (len(sets), 1))
    for row, one in zip(profile, sets, strict=True):
        own = [
            k
            for k, gene in enumerate(genes)
            if gene in one.positive or (gene.startswith("GENE") and rng.random() < 0.1)
        ]
        row[own] += rng.lognormal(0.8, 0.6, len(own))
    profile /= profile.sum(1, keepdims=True)
    xy = rng.uniform(0, np.sqrt(n) * SPACING_UM, (n, 2))
    centres = rng.uniform(0, np.sqrt(n) * SPACING_UM, (max(n // 250, len(sets)), 2))
    home = rng.choice(len(sets), len(centres), p=rng.dirichlet(np.full(len(sets), 3.0)))
    kind = np.where(rng.random(n) < 0.65, home[cKDTree(centres).query(xy)[1]], rng.choice(len(sets), n))
    near = cKDTree(xy).query(xy, k=4)[1][:, 1:]
    parts = []
    for i in range(0, n, 20_000):
        rows = slice(i, i + 20_000)
        rate = (1 - SPILL) * profile[kind[rows]] + SPILL * profile[kind[near[rows]]].mean(1)
        depth = rng.lognormal(np.log(100), 0.5, len(rate))[:, None]
        parts.append(sparse.csr_matrix(rng.poisson(rate * depth * rng.gamma(4, 0.25, rate.shape)).astype(np.float32)))
    obs = pd.DataFrame({"x_um": xy[:, 0], "y_um": xy[:, 1], "truth": [sets[k].name for k in kind]})
    obs.index = [f"cell{k}" for k in range(n)]
    anndata.AnnData(sparse.vstack(parts).tocsr(), obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(file)


def run(file: Path, way: str) -> None:
    """Label one table one way and print time, peak MB, macro-F1 and the share of cells kept."""
    import anndata
    from scipy import sparse
    from sklearn.metrics import f1_score

    data = anndata.read_h5ad(file)
    data = anndata.AnnData(sparse.csr_matrix(data.X), obs=data.obs, var=data.var)
    truth = data.obs["truth"].astype(str).to_numpy()
    start = time.perf_counter()
    found = by_nuclass(data) if way == "nuclass" else by_scanpy(data)
    seconds = time.perf_counter() - start
    kept = found != ""
    score = f1_score(truth[kept], found[kept], average="macro")
    # The kernel's own peak; getrusage would count the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    sys.stdout.write(json.dumps({"s": seconds, "mb": peak, "f1": score, "kept": float(kept.mean())}))


def by_nuclass(data) -> np.ndarray:
    from nuclass.labels.assign import Settings, label_cells
    from nuclass.labels.counts_table import cells_of
    from nuclass.labels.markers import load_markers
    from nuclass.labels.ontology import load_ontology

    markers = load_markers(ROOT / "resources/markers/markers.tsv")
    ontology = load_ontology(ROOT / "resources/label_ontology.yaml")
    cells = cells_of(data, 10, 5)
    return label_cells(data, cells, markers, ORGAN, ontology, Settings()).labels["cell_type"].to_numpy()


def by_scanpy(data) -> np.ndarray:
    import scanpy as sc

    from nuclass.labels.markers import load_markers, marker_sets

    sets, _ = marker_sets(load_markers(ROOT / "resources/markers/markers.tsv"), ORGAN, list(data.var_names))
    sc.pp.normalize_total(data)
    sc.pp.log1p(data)
    sc.pp.pca(data, n_comps=30)
    sc.pp.neighbors(data, n_neighbors=15, transformer=_transformer(15))
    sc.tl.leiden(data, resolution=1.0, flavor="igraph", n_iterations=2, directed=False)
    for one in sets:
        sc.tl.score_genes(data, list(one.positive), score_name=one.name, ctrl_size=25)
    scores = data.obs.groupby("leiden", observed=True)[[one.name for one in sets]].mean()
    return data.obs["leiden"].map(scores.idxmax(axis=1)).astype(str).to_numpy()


def _transformer(k: int):
    """Return scanpy's own search for neighbours; scanpy 1.11 does not take the kind of matrix that it gives today."""
    from pynndescent import PyNNDescentTransformer
    from scipy import sparse

    class Transformer(PyNNDescentTransformer):
        def fit_transform(self, X, y=None, **params):
            return sparse.csr_matrix(super().fit_transform(X, y, **params))

    return Transformer(n_neighbors=k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[20_000, 100_000, 300_000, 600_000])
    parser.add_argument("--genes", type=int, default=400)
    parser.add_argument("--step", nargs=2, metavar=("FILE", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run(Path(options.step[0]), options.step[1])
        return
    sys.stdout.write("| cells | way | s | peak MB | macro-F1 | kept |\n|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as temporary:
        for n in options.cells:
            file = Path(temporary) / f"{n}.h5ad"
            draw(file, n, options.genes)
            for way in WAYS:
                command = [sys.executable, __file__, "--step", str(file), way]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    cause = done.stderr.strip().splitlines()[-1:] or [f"ended by signal {-done.returncode}"]
                    sys.stdout.write(f"| {n:,} | {way} | failed: {cause[0][:80]} | | | |\n")
                    continue
                got = json.loads(done.stdout)
                sys.stdout.write(
                    f"| {n:,} | {way} | {got['s']:.0f} | {got['mb']:,.0f} | {got['f1']:.3f} | {got['kept']:.3f} |\n"
                )
                sys.stdout.flush()
            file.unlink()


if __name__ == "__main__":
    main()
