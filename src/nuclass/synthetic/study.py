"""One slide of the synthetic study: tissue, images and bundle, with the truth kept apart."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_json, write_parquet
from nuclass.core.log import get_logger
from nuclass.core.slides_sheet import SYNTHETIC_GIVEN
from nuclass.synthetic.bundle import BundleData, RunInfo, cell_ids, write_bundle, write_he
from nuclass.synthetic.cell_groups import write_cell_groups
from nuclass.synthetic.classes import CLASSES, GROUPS
from nuclass.synthetic.expression import Expression, Panel, express, make_panel
from nuclass.synthetic.histology import Canvas, draw_dapi, draw_he, draw_stain
from nuclass.synthetic.shapes import Shapes, make_shapes
from nuclass.synthetic.tissue import RECIPES, Tissue, grow_tissue
from nuclass.xenium.inventory import given_name

_log = get_logger(__name__)

PIXEL_SIZE = 0.2125
_MARGIN_UM = 25.0
_SIZES = {"train": (2200.0, 560.0, 2100), "cohort": (1500.0, 760.0, 2000)}


@dataclass(frozen=True)
class Scan:
    """How the H&E lies to the bundle: um a pixel, rotation in degrees, mirrored, and what its file claims."""

    mpp: float
    rotation: float
    mirrored: bool = False
    claimed_mpp: float | None = None


SCANS: dict[str, Scan] = {
    "ovary_1": Scan(0.2738, -89.51),
    "lung_1": Scan(0.2641, -90.42, claimed_mpp=0.2125),
    "pancreas_1": Scan(0.2905, -88.87),
    "breast_1": Scan(0.3122, -91.05),
    "colon_1": Scan(0.2469, -89.84),
    "ovary_h": Scan(0.2687, -90.66),
    "lung_h": Scan(0.2823, -89.20, mirrored=True),
    "pancreas_h": Scan(0.2584, -90.13, claimed_mpp=1.0),
}


def simulate_slide(
    *, slide: str, organ: str, role: str, seed: int, bundle_folder: str | Path, truth_folder: str | Path
) -> None:
    """Simulate one slide: its bundle, H&E and alignment, and the truth apart from them.

    Parameters
    ----------
    slide, organ, role
        As in the slides sheet; the organ must be one of breast, colon, lung, ovary, pancreas.
    seed
        The seed of the study. Equal seeds give equal bytes.
    bundle_folder
        Where the bundle, its H&E and its alignment go, and for one slide labels as if they had been published.
    truth_folder
        Where the truth goes; read by scoring only.
    """
    if organ not in RECIPES:
        raise UserError(
            "No synthetic tissue exists for this organ",
            where=f"slide '{slide}'",
            found=organ,
            expected=", ".join(sorted(RECIPES)),
            fix="choose one of these organs in the slides sheet",
        )
    width, height, n_cells = _SIZES[role]
    rng = np.random.default_rng([seed, zlib.crc32(slide.encode())])
    panel = make_panel(np.random.default_rng([seed, 1]))
    tissue = grow_tissue(organ, width, height, n_cells, rng)
    shapes = make_shapes(tissue.cells, rng)
    _log.info("%s: %d cells of %d classes grown", slide, len(tissue.cells), tissue.cells["class"].nunique())
    expression = express(tissue.cells, organ, panel, shapes.nucleus_polygons(), shapes.cell_polygons(), rng)
    _keep_inside(expression.transcripts, width, height)
    scan = SCANS.get(slide) or Scan(float(rng.uniform(0.24, 0.32)), float(rng.uniform(-91.5, -88.5)))
    matrix, canvas = place_he(width, height, scan)
    bundle = Path(bundle_folder)
    bundle.mkdir(parents=True, exist_ok=True)
    image = draw_he(tissue, shapes, canvas, draw_stain(rng), rng)
    write_he(bundle / f"{slide}_he_image.ome.tif", image, scan.claimed_mpp or scan.mpp, seed)
    del image
    _write_alignment(bundle / f"{slide}_he_imagealignment.csv", matrix)
    ids = cell_ids(len(expression.reported), int(rng.integers(0, 2**31)))
    if slide in SYNTHETIC_GIVEN:
        classes = tissue.cells["class"].iloc[expression.reported].tolist()
        own = np.random.default_rng([seed, zlib.crc32(slide.encode()), 1])
        write_cell_groups(bundle / given_name(slide), ids, classes, expression.poor[expression.reported], own)
    write_bundle(bundle, slide, _bundle_data(slide, organ, tissue, shapes, expression, panel, ids, rng))
    _write_truth(Path(truth_folder), slide, organ, seed, tissue, shapes, expression, ids, scan, matrix, canvas)


def _keep_inside(transcripts: pd.DataFrame, width: float, height: float) -> None:
    """Move transcripts from beyond the region to its edge: the instrument sees nothing outside."""
    for column, end in (("x_um", width), ("y_um", height)):
        transcripts[column] = transcripts[column].clip(upper=np.floor((end - PIXEL_SIZE) * 64) / 64)


def place_he(width: float, height: float, scan: Scan) -> tuple[np.ndarray, Canvas]:
    """Return the alignment (3, 3; H&E px to morphology px) and the H&E's pixel grid over the section."""
    turn = np.deg2rad(scan.rotation)
    linear = scan.mpp / PIXEL_SIZE * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if scan.mirrored:
        linear = linear @ np.diag([-1.0, 1.0])
    to_he = np.linalg.inv(linear) / PIXEL_SIZE
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ to_he.T
    margin = _MARGIN_UM / scan.mpp
    offset = margin - corners.min(0)
    size = np.ceil(corners.max(0) - corners.min(0) + 2 * margin).astype(int)
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = -linear @ offset
    return matrix, Canvas(int(size[1]), int(size[0]), np.column_stack([to_he, offset]))


def _write_alignment(path: Path, matrix: np.ndarray) -> None:
    """Write the matrix as Xenium Explorer does: CRLF between lines, none at the end."""
    rows = [",".join(f"{value:.10f}" for value in row) for row in matrix[:2]]
    path.write_bytes("\r\n".join([*rows, "0,0,1"]).encode("ascii"))


def _bundle_data(
    slide: str,
    organ: str,
    tissue: Tissue,
    shapes: Shapes,
    expression: Expression,
    panel: Panel,
    ids: list[str],
    rng: np.random.Generator,
) -> BundleData:
    """Collect what the segmentation reports: merged cells share a record, some cells have no nucleus."""
    reported = expression.reported
    row_of = np.full(len(tissue.cells), -1)
    row_of[reported] = np.arange(len(reported))
    outlines = shapes.nucleus_polygons()
    nuclei = outlines[reported].copy()
    nuclei[~expression.has_nucleus[reported]] = np.nan
    swallowed = np.flatnonzero(expression.merged_into != np.arange(len(tissue.cells)))
    transcripts = expression.transcripts.copy()
    owned = transcripts["cell"].to_numpy()
    transcripts["cell"] = np.where(owned >= 0, row_of[np.maximum(owned, 0)], -1)
    canvas = Canvas(
        int(np.ceil(tissue.height / PIXEL_SIZE)),
        int(np.ceil(tissue.width / PIXEL_SIZE)),
        np.array([[1 / PIXEL_SIZE, 0, 0], [0, 1 / PIXEL_SIZE, 0]]),
    )
    return BundleData(
        cell_id=ids,
        cell_polygons=shapes.cell_polygons()[reported],
        nucleus_polygons=nuclei,
        extra_nuclei=outlines[swallowed],
        extra_nucleus_cell=row_of[expression.merged_into[swallowed]],
        transcripts=transcripts,
        genes=pd.DataFrame({"id": [f"ENSG{k:011d}" for k in range(1, len(panel.genes) + 1)], "name": panel.genes}),
        morphology=draw_dapi(tissue, shapes, canvas, rng),
        width_um=tissue.width,
        height_um=tissue.height,
        organ=organ,
        info=RunInfo(region_name=slide),
        seed=int(rng.integers(0, 2**31)),
        pixel_size=PIXEL_SIZE,
    )


def _write_truth(
    folder: Path,
    slide: str,
    organ: str,
    seed: int,
    tissue: Tissue,
    shapes: Shapes,
    expression: Expression,
    ids: list[str],
    scan: Scan,
    matrix: np.ndarray,
    canvas: Canvas,
) -> None:
    """Write the truth of one slide, and the facts that hold for the whole study."""
    reported = expression.reported
    merged = np.bincount(expression.merged_into, minlength=len(tissue.cells)) > 1
    cells = tissue.cells.iloc[reported]
    he = canvas.points(shapes.centre[reported])
    truth = pd.DataFrame(
        {
            "cell_id": ids,
            "class": cells["class"].to_numpy(),
            "structure": cells["structure"].to_numpy(),
            "x_um": shapes.centre[reported, 0],
            "y_um": shapes.centre[reported, 1],
            "x_he": he[:, 0],
            "y_he": he[:, 1],
            "nest_distance_um": cells["nest_distance"].to_numpy(),
            "doublet": merged[reported],
            "poor": expression.poor[reported],
            "has_nucleus": expression.has_nucleus[reported],
        }
    )
    write_json(
        folder / "slide.json",
        {
            "slide": slide,
            "organ": organ,
            "seed": seed,
            "mpp_he": scan.mpp,
            "rotation_deg": scan.rotation,
            "mirrored": scan.mirrored,
            "claimed_mpp": scan.claimed_mpp or scan.mpp,
            "alignment": matrix,
        },
    )
    study = {"seed": seed, "classes": CLASSES, "groups": GROUPS}
    path = folder.parent / "study.json"
    if not path.exists() or read_json(path) != read_json_like(study):
        write_json(path, study)
    write_parquet(folder / "truth.parquet", truth)


def read_json_like(data: dict[str, object]) -> object:
    """Return ``data`` as it would be read back from JSON."""
    import json

    return json.loads(json.dumps(data))
