"""Which runs are compared with which, and the files that this needs."""

from nuclass.core import variants as of_variants

INTERVALS = {"mpp": CONFIG["mpp"], **{key: CONFIG["evaluation"][key] for key in ("block_um", "seed", "min_support")}}
INTERVALS |= {"draws": CONFIG["evaluation"]["bootstrap"], "bins": CONFIG["evaluation"]["ece_bins"]}
RUN_COMPARISONS = [of_variants.SEEDS, of_variants.ORGAN, of_variants.GUIDANCE, of_variants.CONTEXT]
ORGAN_RUNS = [run.name for run in VARIANTS.group(of_variants.ORGAN)]
LEFT_OUT = list(dict.fromkeys(run.value.split()[0] for run in VARIANTS.group(of_variants.LEAVE_OUT)))
AUDITED = [run.name for run in VARIANTS.group(of_variants.AUDIT)]
SWITCHES_ASKED = CONFIG["ablations"]["switches"]
WITH_POLICY = SWITCHES_ASKED == "all" or "policy_on_test" in SWITCHES_ASKED

_owners = {slide: dict(SLIDES.loc[slide, ["organ", "patient"]]) for slide in [*COHORTS, *TRAIN_SLIDES]}
try:
    LEFT_OUT_SLIDES = {organ: of_variants.organ_slides(organ, _owners, TRAIN_SLIDES) for organ in LEFT_OUT}
except UserError as error:
    logger.error(str(error))
    sys.exit(1)

TOLD = {"short": STUDY.models["ablations"] and CONFIG["models"], "synthetic": SYNTHETIC, "flaws": FLAWS}
TOLD["min_support"] = CONFIG["evaluation"]["min_support"]


def run_tables(name, cohorts=COHORTS, val=TRAIN_SLIDES):
    """Return a run's prediction tables, as `nuclass.evaluation.ablation.Run` takes them."""
    run = VARIANTS.members[name]
    gate = f"{VARIANTS.place(name, 'gate')}/models/gate/metrics.json" if "gate" in run.parts else ""
    return {
        "name": name,
        "group": run.group,
        "value": run.value,
        "cohorts": {model: run_predictions(name, model, cohorts) for model in run.parts},
        "val": {model: run_predictions(name, model, val) for model in run.parts},
        "test_as_val": run.protocol.test_as_val,
        "gate_metrics": gate,
    }


def files_of(*runs):
    """Return the files of runs, each once."""
    tables = [file for run in runs for kind in ("cohorts", "val") for files in run[kind].values() for file in files]
    return list(dict.fromkeys([*tables, *(run["gate_metrics"] for run in runs if run["gate_metrics"])]))


def compared(group):
    """Return the reference and the runs of a comparison."""
    return [run_tables(of_variants.REFERENCE), *(run_tables(run.name) for run in VARIANTS.group(group))]


def without(organ):
    """Return the runs that an organ was left out of, with that organ's cells."""
    names = [run.name for run in VARIANTS.group(of_variants.LEAVE_OUT) if run.value.split()[0] == organ]
    return [run_tables(name, LEFT_OUT_SLIDES[organ], []) for name in names]
