"""What a study will cost before anything is spent: jobs, time, memory, disk, downloads."""
