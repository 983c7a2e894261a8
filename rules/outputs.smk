"""How figures and tables are named, and which of their files the report shows."""

FORMATS = CONFIG["figures"]["formats"]
# The report shows a JPEG, a tenth of the size of the PNG of 300 dpi.
SHOWN = "jpg"
ENDINGS = [*FORMATS, SHOWN, "csv"]


def drawn(name, category, what):
    """Return a figure's files: in the formats asked for, and the picture that goes into the report."""
    shown = report(
        f"results/figures/{name}.{SHOWN}",
        caption=f"../workflow/report/{name}.rst",
        category=category,
        labels={"figure": what},
    )
    return [*[f"results/figures/{name}.{ending}" for ending in FORMATS], shown]


def slide_pictures(name, caption, category):
    """Return the pictures of one slide's labels: in the formats asked for, and the one that goes into the report."""
    shown = report(
        f"results/labels/{{slide}}/{name}.{SHOWN}",
        caption=f"../workflow/report/{caption}.rst",
        category=category,
        labels={"figure": "Slide {slide}"},
    )
    return [*[f"results/labels/{{slide}}/{name}.{ending}" for ending in FORMATS], shown]


def laid_out(name, category, what):
    """Return a table's CSV, which goes into the report."""
    return report(
        f"results/tables/{name}.csv",
        caption=f"../workflow/report/table_{name}.rst",
        category=category,
        labels={"table": what},
    )


def figure_files(names):
    """Return the files of figures, with the picture of the report and the numbers they draw."""
    return expand("results/figures/{name}.{ending}", name=names, ending=ENDINGS)


def table_files(names):
    """Return the files of tables."""
    return expand("results/tables/{name}.{ending}", name=names, ending=["csv", "md", "tex"])
