"""Cut slides into train, validation and test so that no window of one split shows a pixel of another's."""

from nuclass.splits.check import check_no_overlap, count_overlaps
from nuclass.splits.cut import Split, SplitConfig, split_cells

__all__ = ["Split", "SplitConfig", "check_no_overlap", "count_overlaps", "split_cells"]
