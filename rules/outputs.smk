"""How figures and tables are named, and which of their files the report shows."""

FORMATS = CONFIG["figures"]["formats"]


def drawn(name, category, what):
    """Return a figure's files; the one that a browser shows best goes into the report."""
    shown = next(ending for ending in ("png", "svg", "pdf") if ending in FORMATS)
    paths = {ending: f"results/figures/{name}.{ending}" for ending in FORMATS}
    paths[shown] = report(
        paths[shown], caption=f"../workflow/report/{name}.rst", category=category, labels={"figure": what}
    )
    return list(paths.values())


def slide_pictures(name, caption, category):
    """Return the pictures of one slide's labels; the one that a browser shows best goes into the report."""
    shown = next(ending for ending in ("png", "svg", "pdf") if ending in FORMATS)
    paths = {ending: f"results/labels/{{slide}}/{name}.{ending}" for ending in FORMATS}
    paths[shown] = report(
        paths[shown],
        caption=f"../workflow/report/{caption}.rst",
        category=category,
        labels={"figure": "Slide {slide}"},
    )
    return list(paths.values())


def laid_out(name, category, what):
    """Return a table's CSV, which goes into the report."""
    return report(
        f"results/tables/{name}.csv",
        caption=f"../workflow/report/table_{name}.rst",
        category=category,
        labels={"table": what},
    )


def figure_files(names):
    """Return the files of figures, with the numbers they draw."""
    return expand("results/figures/{name}.{ending}", name=names, ending=[*CONFIG["figures"]["formats"], "csv"])


def table_files(names):
    """Return the files of tables."""
    return expand("results/tables/{name}.{ending}", name=names, ending=["csv", "md"])
