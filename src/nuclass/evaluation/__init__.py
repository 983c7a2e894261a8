"""Metrics, intervals, comparisons and checks on predictions that are already made."""

from nuclass.evaluation.bootstrap import paired_bootstrap, spatial_blocks
from nuclass.evaluation.branch import branches, gate_auroc, oracle, plain_mean
from nuclass.evaluation.cohort import evaluate_model
from nuclass.evaluation.compare import compare, compare_cohorts
from nuclass.evaluation.dataset import count_cells
from nuclass.evaluation.leak import check_no_overlap, seen_cells
from nuclass.evaluation.metrics import confusion, ece, metrics, per_class, reliability
from nuclass.evaluation.predictions import Predictions, read_models, read_predictions

__all__ = [
    "Predictions",
    "branches",
    "check_no_overlap",
    "compare",
    "compare_cohorts",
    "confusion",
    "count_cells",
    "ece",
    "evaluate_model",
    "gate_auroc",
    "metrics",
    "oracle",
    "paired_bootstrap",
    "per_class",
    "plain_mean",
    "read_models",
    "read_predictions",
    "reliability",
    "seen_cells",
    "spatial_blocks",
]
