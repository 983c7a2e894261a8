"""The slide as SpatialData: its picture, its nuclei, and the table of its cells, in one frame of micrometres.

Frames: a coordinate is continuous and pixel i covers [i, i + 1), here as in spatialdata, whose pixel centres stand at
i + 0.5. So micrometres are px times um per px, without a shift of half a pixel, at every level of the picture. The
levels halve exactly only where the sides are multiples of the coarsest step; the picture is filled up to such a size
with white, at its right and lower edge.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nuclass.apply.out_anndata import cells_table
from nuclass.apply.out_read import LEFT_OUT, Run
from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID
from nuclass.slides.store import SlideStore

if TYPE_CHECKING:
    from anndata import AnnData

_log = get_logger(__name__)
IMAGE, SHAPES, CELLS = "he", "nuclei", "cells"
RADIUS_UM = 4.0
"""Of the circle that stands for a cell without an outline; a choice, about that of a nucleus."""
_CORNERS = 16
_BLOCK = 1024


def write_spatialdata(run: Run, store: str | Path, path: str | Path) -> None:
    """Write ``spatialdata.zarr``: image ``he``, shapes ``nuclei`` (where there is a cell) and table ``cells``.

    Cells that were left out are in none of them.

    Raises
    ------
    UserError
        Where spatialdata is not installed.
    """
    check_installed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spatialdata import SpatialData

        image = _image(Path(store))
        table = cells_table(run)
        shapes = _shapes(run, table) if table.n_obs else None
        table = _annotating(table) if shapes is not None else table
        parts: dict[str, Any] = {"images": {IMAGE: image}, "tables": {CELLS: table}}
        if shapes is not None:
            parts["shapes"] = {SHAPES: shapes}
        with atomic_path(path) as temporary:
            SpatialData(**parts).write(temporary, update_sdata_path=False)


def check_installed() -> None:
    """Raise where spatialdata is not installed."""
    if find_spec("spatialdata") is None:
        raise UserError(
            "The output spatialdata needs a package that is not installed",
            expected="spatialdata",
            fix="pip install 'spatialdata>=0.4', or leave this output out",
        )


def _image(store: Path) -> Any:
    """Return the levels of the store as a tree of arrays that are read when they are written, block by block."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale, set_transformation
    from xarray import DataArray, Dataset, DataTree

    with SlideStore(store) as source:
        mpp, levels, (height, width) = source.mpp, source.levels, source.shape
    step = 2 ** (levels - 1)
    height, width = (-(-side // step) * step for side in (height, width))
    tree = {}
    for level in range(levels):
        at = 2**level
        axes = {
            "c": ["r", "g", "b"],
            "y": (np.arange(height // at) + 0.5) * at,
            "x": (np.arange(width // at) + 0.5) * at,
        }
        pixels = _lazy(store, level, height // at, width // at)
        tree[f"scale{level}"] = Dataset({"image": DataArray(pixels, dims=("c", "y", "x"), coords=axes, name="image")})
    image = DataTree.from_dict(tree)
    set_transformation(image, {"global": Scale([mpp, mpp], axes=("y", "x"))}, set_all=True)
    Image2DModel.validate(image)
    return image


def _lazy(store: Path, level: int, height: int, width: int) -> Any:
    """Return a dask array (3, height, width) of one level, in blocks of :data:`_BLOCK` px."""
    import dask.array as da

    sizes = [(*[_BLOCK] * (side // _BLOCK), *([side % _BLOCK] if side % _BLOCK else [])) for side in (height, width)]
    return da.map_blocks(
        _block, store, level, dtype=np.uint8, chunks=((3,), *sizes), meta=np.empty((0, 0, 0), np.uint8)
    )


def _block(store: Path, level: int, block_info: Any = None) -> NDArray[np.uint8]:
    """Read one block; each has files of its own, for a store belongs to one thread."""
    (_, (y0, y1), (x0, x1)) = block_info[None]["array-location"]
    with SlideStore(store, cache_mb=1) as source:
        return np.ascontiguousarray(source.region(x0, y0, x1 - x0, y1 - y0, level).transpose(2, 0, 1))


def _shapes(run: Run, table: AnnData) -> Any:
    """Return one shape a cell of the table, by cell id, in micrometres: outlines, or circles where there are none."""
    import shapely
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    places = np.asarray(table.obsm["spatial"], dtype=np.float64)
    outlines = _polygons(run) if run.has_outlines else np.full(len(places), None, dtype=object)
    own = ~shapely.is_missing(outlines)
    found: dict[str, Any] = {}
    if own.any():
        found["geometry"] = np.where(own, outlines, _circles(places))
        found["outlined"] = own
        if not own.all():
            _log.warning("%d of %d cells have no outline; circles stand for them", (~own).sum(), len(own))
    else:
        found["geometry"] = shapely.points(places)
        found["radius"] = np.full(len(places), RADIUS_UM)
    frame = GeoDataFrame(found, geometry="geometry", index=table.obs[CELL_ID].tolist())
    return ShapesModel.parse(frame, transformations={"global": Identity()})


def _polygons(run: Run) -> NDArray[np.object_]:
    """Return the outlines of the cells that were not left out as polygons in micrometres; None without one."""
    import shapely

    mpp = float(run.facts["mpp_he"])
    found = []
    for frame, rings in run.parts_with_outlines():
        assert rings is not None
        clean = rings.cleaned()
        has = clean.lengths > 0
        polygons = np.full(len(has), None, dtype=object)
        if has.any():
            number = np.repeat(np.cumsum(has) - 1, clean.lengths)
            polygons[has] = shapely.polygons(shapely.linearrings(clean.vertices * mpp, indices=number))
        found.append(polygons[(frame["status"] != LEFT_OUT).to_numpy()])
    return np.concatenate(found)


def _circles(places: NDArray[np.float64]) -> NDArray[np.object_]:
    """Return polygons of :data:`_CORNERS` corners around places (N, 2)."""
    import shapely

    turn = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    round_ = RADIUS_UM * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return np.asarray(shapely.polygons(places[:, None] + round_), dtype=object)


def _annotating(table: AnnData) -> AnnData:
    """Return the table bound to the shapes."""
    import pandas as pd
    from spatialdata.models import TableModel

    table.obs["region"] = pd.Categorical([SHAPES] * table.n_obs)
    return TableModel.parse(table, region=SHAPES, region_key="region", instance_key=CELL_ID)
