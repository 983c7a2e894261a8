"""What jobs ask of a machine: memory and time, by what they read and how often they failed. For common.smk."""

# A cluster job holds two processes of Snakemake beside that of the rule, of 180 MB each.
SNAKEMAKE_MB = 400
MB_A_GB = 1024
# An attempt after the first gets that many times the time, at the most, and no more than a day.
MOST_TIMES = 3
DAY = 1440


def size_of(files):
    """Return the size of files in MB. Files that a job of the same group has yet to make count for nothing."""
    return sum(Path(file).stat().st_size for file in files if Path(file).exists()) / 2**20


def picture_of(slide):
    """Return the size of a slide's H&E in MB; 0 before it is fetched, and where it is no single file.

    A bundle.json that cannot be read counts as none: the jobs that read it tell what is wrong.
    """
    facts = Path(f"resources/bundles/{slide}/bundle.json")
    try:
        he = json.loads(facts.read_text(encoding="utf-8"))["he"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0.0
    return size_of([facts.parent / he])


def mem(base, factor=0.0, doublings=2):
    """Return a memory request in MB: ``base`` plus ``factor`` for each MB of input, up to four times in new attempts."""

    def megabytes(wildcards, input, attempt):
        return SNAKEMAKE_MB + int((base + factor * size_of(input)) * 2 ** min(attempt - 1, doublings))

    return megabytes


def table_mem(base, factor):
    """Return a memory request in MB: ``base`` plus ``factor`` for each MB of predictions; of checkpoints little is read."""

    def megabytes(wildcards, input, attempt):
        read = [*input.tables, *input.get("arrays", [])]
        return SNAKEMAKE_MB + int((base + factor * size_of(read)) * 2 ** min(attempt - 1, 2))

    return megabytes


def slide_mem(wildcards, attempt):
    """Return a memory request in MB for the tables and the picture of one slide, up to four times in new attempts.

    The picture is read piece by piece, so its size does not count.
    """
    return SNAKEMAKE_MB + (1500 if is_small(wildcards) else 8000) * 2 ** min(attempt - 1, 2)


def grown(asked, attempt):
    """Return a time limit for an attempt: earlier ones may have met theirs. What starts beyond a day stays."""
    return max(asked, min(asked * min(attempt, MOST_TIMES), DAY))


def minutes(base, per_gb=0):
    """Return a time limit in minutes that grows with each attempt, for a job that begins anew each time.

    ``base`` plus ``per_gb`` for each GB of its tables of predictions, or of all input where it has none.
    """

    def limit(wildcards, input, attempt):
        return grown(base + round(per_gb * size_of(input.get("tables", input)) / MB_A_GB), attempt)

    return limit


def slide_minutes(large, per_gb=0):
    """Return a time limit in minutes that grows with each attempt: ``large``, or a few for a small slide.

    ``per_gb`` minutes more for each GB of the slide's H&E.
    """

    def limit(wildcards, attempt):
        more = round(per_gb * picture_of(wildcards.slide) / MB_A_GB)
        return grown(15 if is_small(wildcards) else large + more, attempt)

    return limit
