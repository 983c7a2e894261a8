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


def drawn_pages(name, category, what, pages):
    """Return a figure of several pages: one PDF, in every other format a file a page; `pages` names those after the first."""
    stems = {"": what, **{f"_{page}": f"{what}: {page}" for page in pages}}
    documents = [f"results/figures/{name}.pdf"] if "pdf" in FORMATS else []
    pictures = [f"results/figures/{name}{stem}.{ending}" for ending in FORMATS if ending != "pdf" for stem in stems]
    shown = []
    for stem, words in stems.items():
        page = report(
            f"results/figures/{name}{stem}.{SHOWN}",
            caption=f"../workflow/report/{name}.rst",
            category=category,
            labels={"figure": words},
        )
        shown.append(page)
    return [*documents, *pictures, *shown]


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
