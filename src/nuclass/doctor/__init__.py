"""The doctor: will the configured study run on this machine, and if not, what is to be done."""

from __future__ import annotations

from nuclass.doctor.case import Case
from nuclass.doctor.catalogue import all_checks, examine, stage_of_job, study_name
from nuclass.doctor.exam import GROUPS, Check, Result
from nuclass.doctor.report import as_json, as_text, counts_of, tell

__all__ = [
    "GROUPS",
    "Case",
    "Check",
    "Result",
    "all_checks",
    "as_json",
    "as_text",
    "counts_of",
    "examine",
    "stage_of_job",
    "study_name",
    "tell",
]
