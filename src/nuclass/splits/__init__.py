"""Cut slides into train, validation and test so that no window of one split shows a pixel of another's."""

from nuclass.splits.check import check_no_overlap, count_overlaps, margin
from nuclass.splits.cut import Split, split_cells
from nuclass.splits.read import read_cells, read_labels
from nuclass.splits.settings import SplitConfig

__all__ = [
    "Split",
    "SplitConfig",
    "check_no_overlap",
    "count_overlaps",
    "margin",
    "read_cells",
    "read_labels",
    "split_cells",
]
