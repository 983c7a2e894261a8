"""The slide store: exact pixels, exact geometry, any source layout, bounded reads."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image as Pillow

from nuclass.core.errors import UserError
from nuclass.slides.geometry import Frames, window_origin
from nuclass.slides.resample import resampled
from nuclass.slides.source import open_source
from nuclass.slides.store import SlideStore, morton
from nuclass.slides.writer import write_store


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise on smooth colour: every pixel matters, no two tiles are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([150 + 60 * np.sin(x / 31), 140 + 60 * np.cos(y / 23), 160 + 50 * np.sin((x + y) / 47)], -1)
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def frames_for(mpp_he: float, mpp: float = 0.25) -> Frames:
    return Frames(np.diag([mpp_he / 0.2125, mpp_he / 0.2125, 1.0]), 0.2125, mpp)


def write_tiff(path, image, **options):
    tifffile.imwrite(path, image, photometric="rgb", **{"tile": (64, 64), "compression": "zlib", **options})
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    image = picture(701, 903)
    image[:300, :300] = 255
    he = write_tiff(folder / "he.ome.tif", image)
    info = write_store(he, frames_for(0.25), folder / "he.ome.zarr", tile=64, shard=256, levels=4)
    return folder / "he.ome.zarr", image, info


def halved(image: np.ndarray) -> np.ndarray:
    """2 x 2 mean, rounded, of an image with even sides."""
    total = image.astype(np.uint16).reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2, 3).sum(axis=(1, 3))
    return ((total + 2) // 4).astype(np.uint8)


def test_level_0_is_the_source_where_the_scales_agree(built):
    path, image, info = built
    store = SlideStore(path)
    assert store.shape == (701, 903) == tuple(info["store_shape"])
    np.testing.assert_array_equal(store.region(0, 0, 903, 701), image)


def test_zarr_python_reads_the_same(built):
    path, _, _ = built
    store = SlideStore(path)
    group = zarr.open_group(path, mode="r")
    for level in range(store.levels):
        height, width = store.level_shape(level)
        array = group[str(level)]
        assert array.shape == (3, height, width)
        assert array.shards == (3, 256, 256)
        assert array.chunks == (3, 64, 64)
        np.testing.assert_array_equal(np.moveaxis(array[:], 0, -1), store.region(0, 0, width, height, level))


def test_levels_are_means_of_the_level_above(built):
    store = SlideStore(built[0])
    for level in range(3):
        height, width = (n // 2 * 2 for n in store.level_shape(level))
        above = store.region(0, 0, width, height, level)
        np.testing.assert_array_equal(store.region(0, 0, width // 2, height // 2, level + 1), halved(above))


def test_ome_zarr_reads_the_same_with_the_right_scale(built):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    path, _, _ = built
    location = parse_url(path)
    assert location.fmt.version == "0.5"
    (node,) = Reader(location)()
    store = SlideStore(path)
    assert [axis["unit"] for axis in node.metadata["axes"][1:]] == ["micrometer", "micrometer"]
    for level, (data, transforms) in enumerate(zip(node.data, node.metadata["coordinateTransformations"], strict=True)):
        assert transforms[0] == {"type": "scale", "scale": [1.0, 0.25 * 2**level, 0.25 * 2**level]}
        height, width = store.level_shape(level)
        np.testing.assert_array_equal(np.moveaxis(np.asarray(data), 0, -1), store.region(0, 0, width, height, level))


def test_spatialdata_reads_the_same(built, tmp_path):
    """Its reader of images takes the store in px of level 0; as a model it has the pixel size of the metadata."""
    spatialdata = pytest.importorskip("spatialdata")
    from ome_zarr.format import FormatV05
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader
    from spatialdata._io.io_raster import _read_multiscale
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale, get_transformation

    path, image, _ = built
    read = _read_multiscale(path, "image", FormatV05())
    np.testing.assert_array_equal(np.moveaxis(read["scale0"]["image"].to_numpy(), 0, -1), image)
    assert [read[f"scale{k}"]["image"].shape[1:] for k in range(4)] == [(701, 903), (351, 452), (176, 226), (88, 113)]
    np.testing.assert_array_equal(get_transformation(read).to_affine_matrix(("x", "y"), ("x", "y")), np.eye(3))

    (node,) = Reader(parse_url(path))()
    step = node.metadata["coordinateTransformations"][0][0]["scale"][1:]
    names = node.metadata["channel_names"]
    he = Image2DModel.parse(
        node.data[0],
        dims=("c", "y", "x"),
        transformations={"global": Scale(step, ("y", "x"))},
        c_coords=names,
    )
    spatialdata.SpatialData(images={"he": he}).write(tmp_path / "sample.zarr")
    again = spatialdata.read_zarr(tmp_path / "sample.zarr")["he"]
    np.testing.assert_array_equal(np.moveaxis(again.to_numpy(), 0, -1), image)
    affine = get_transformation(again).to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_array_equal(affine, np.diag([0.25, 0.25, 1]))


def test_metadata_states_the_scale(built):
    attributes = zarr.open_group(built[0], mode="r").attrs.asdict()
    multiscale = attributes["ome"]["multiscales"][0]
    assert attributes["ome"]["version"] == "0.5"
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    for level, dataset in enumerate(multiscale["datasets"]):
        scale, *shift = dataset["coordinateTransformations"]
        assert scale["scale"] == [1.0, 0.25 * 2**level, 0.25 * 2**level]
        if level:
            assert shift[0]["translation"][1] == pytest.approx(0.25 * (2**level - 1) / 2)
    assert {"mpp", "source", "mpp_he", "scale"} <= set(attributes["nuclass"])


def reference_window(image, x, y, size):
    x0, y0 = window_origin((x, y), size)
    padded = np.full((image.shape[0] + 2 * size, image.shape[1] + 2 * size, 3), 255, np.uint8)
    padded[size:-size, size:-size] = image
    return padded[y0 + size : y0 + 2 * size, x0 + size : x0 + 2 * size]


@pytest.mark.parametrize("size", [1, 63, 64, 100])
def test_windows_equal_slices_and_are_white_beyond(built, size):
    path, image, _ = built
    store = SlideStore(path)
    rng = np.random.default_rng(size)
    xy = rng.uniform((-size / 2, -size / 2), (903 + size / 2, 701 + size / 2), (60, 2))
    expected = np.stack([reference_window(image, x, y, size) for x, y in xy])
    for order in ("tile", "given"):
        np.testing.assert_array_equal(store.windows(xy, size, order=order), expected)
    fractions = store.padded_fractions(xy, size)
    for i, (x, y) in enumerate(xy):
        window, padded = store.window(x, y, size)
        np.testing.assert_array_equal(window, expected[i])
        x0, y0 = window_origin((x, y), size)
        ys, xs = np.mgrid[y0 : y0 + size, x0 : x0 + size]
        outside = ~((xs >= 0) & (xs < 903) & (ys >= 0) & (ys < 701))
        assert padded == pytest.approx(outside.mean())
        assert fractions[i] == pytest.approx(padded)
    seen = np.zeros(len(xy), int)
    for rows, windows in store.batches(xy, size, batch=7):
        np.testing.assert_array_equal(windows, expected[rows])
        seen[rows] += 1
    assert (seen == 1).all()


def test_a_level_1_window_covers_twice_the_width(built):
    store = SlideStore(built[0])
    window, _ = store.window(500.0, 400.0, 80, level=1)
    wide, _ = store.window(500.0, 400.0, 160)
    np.testing.assert_array_equal(window, halved(wide))


def test_far_outside_is_white(built):
    window, padded = SlideStore(built[0]).window(-5000, 9e6, 32)
    assert padded == 1
    assert (window == 255).all()


def test_cache_is_bounded_and_white_tiles_cost_nothing(built):
    store = SlideStore(built[0], cache_mb=64 * 64 * 3 * 4 / 1e6)
    store.region(0, 0, 903, 701)
    assert len(store._tiles) <= 4
    index = store._shard(0, 0, 0)[1]
    assert index[0][0] == (2**64 - 1, 2**64 - 1)


def _read_in_child(store, queue):
    queue.put(store.windows([[450.0, 350.0]], 64).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(built, method):
    store = SlideStore(built[0])
    expected = store.windows([[450.0, 350.0]], 64).sum()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()
    assert len(pickle.dumps(store)) < 5000


def test_thumbnail(built):
    path, image, _ = built
    thumbnail = SlideStore(path).thumbnail(200)
    assert max(thumbnail.shape[:2]) <= 200
    assert abs(thumbnail.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 2


@pytest.mark.parametrize("mpp_he", [0.2738, 0.1369, 0.2125, 0.3638, 0.05, 0.25])
def test_the_scaling_is_that_of_pillow(tmp_path, mpp_he):
    image = picture(431, 517, seed=3)
    he = write_tiff(tmp_path / "he.tif", image)
    frames = frames_for(mpp_he)
    height, width = frames.store_shape((431, 517))
    step = 1 / frames.scale
    padded = np.pad(image, ((0, 9), (0, 9), (0, 0)), mode="edge")
    box = (0, 0, width * step, height * step)
    whole = np.asarray(Pillow.fromarray(padded).resize((width, height), Pillow.Resampling.BILINEAR, box=box))
    with open_source(he) as source:
        got = resampled(source, frames.scale, (height, width), (0, 0, width, height)).astype(int)
    inner = (slice(3, int(428 / step)), slice(3, int(514 / step)))
    difference = np.abs(got - whole)
    assert difference[inner].max() <= 1
    assert difference.mean() < 0.3
    assert difference.max() < 40


@pytest.mark.parametrize("mpp_he", [0.2738, 0.2125, 0.1369, 0.1])
@pytest.mark.parametrize("pyramid", [False, True])
def test_geometry_is_exact(tmp_path, mpp_he, pyramid):
    """A dark disc drawn at a known H&E position has its centre of mass at that place in the store."""
    image = np.full((800, 1000, 3), 255, np.uint8)
    centres = [(150.3, 140.7), (853.6, 650.2), (500.0, 333.9)]
    y, x = np.mgrid[:800, :1000] + 0.5
    for cx, cy in centres:
        soft = np.clip(20.5 - np.hypot(x - cx, y - cy), 0, 1)
        image = (image * (1 - 0.7 * soft[..., None])).astype(np.uint8)
    he = tmp_path / "he.ome.tif"
    with tifffile.TiffWriter(he, ome=True) as tiff:
        tiff.write(image, tile=(128, 128), photometric="rgb", subifds=1 if pyramid else 0)
        if pyramid:
            tiff.write(halved(image), tile=(128, 128), photometric="rgb", subfiletype=1)
    frames = frames_for(mpp_he)
    write_store(he, frames, tmp_path / "he.zarr", tile=64, shard=128, levels=2)
    store = SlideStore(tmp_path / "he.zarr")
    for point, (px, py) in zip(centres, frames.he_to_px(centres), strict=True):
        for level in (0, 1):
            size = 120 // 2**level
            window, _ = store.window(px, py, size, level)
            weight = 255.0 - window[..., 0]
            x0, y0 = window_origin((px / 2**level, py / 2**level), size)
            ys, xs = np.mgrid[:size, :size] + 0.5
            found = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum() + (x0, y0)
            np.testing.assert_allclose(found * 2**level, (px, py), atol=0.06 * 2**level, err_msg=str(point))


def test_damage_to_the_store_is_told(tmp_path, built):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(built[0], copy)
    shard = copy / "0" / "c" / "0" / "1" / "1"
    data = bytearray(shard.read_bytes())
    shard.write_bytes(data[:-20] + bytes(20))
    with pytest.raises(UserError, match="damaged"):
        SlideStore(copy).window(300, 300, 8)
    data[10:60] = bytes(50)
    shard.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        SlideStore(copy).region(256, 256, 256, 256)
    shard.unlink()
    with pytest.raises(UserError, match="missing"):
        SlideStore(copy).window(300, 300, 8)
    with pytest.raises(UserError, match="no slide store"):
        SlideStore(tmp_path / "nothing")


def test_tiles_must_fit_shards(tmp_path):
    with pytest.raises(UserError, match="do not fit"):
        write_store(tmp_path / "he.tif", frames_for(0.25), tmp_path / "o", tile=100, shard=256)


@pytest.mark.parametrize("size", [48, 100, 300])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_crowded_windows_and_threads_give_the_same_pixels(built, size, threads):
    """Crowded windows are cut from one picture of their block, single ones from the tiles."""
    path, image, _ = built
    rng = np.random.default_rng(size)
    crowded = [rng.normal(centre, 25, (60, 2)) for centre in ((450, 350), (895, 690), (5, 3))]
    xy = np.concatenate([*crowded, rng.uniform((-400, -400), (1300, 1100), (40, 2))])
    xy = xy[rng.permutation(len(xy))]
    expected = np.stack(
        [
            reference_window(
                np.pad(image, ((800, 800), (800, 800), (0, 0)), constant_values=255), x + 800, y + 800, size
            )
            for x, y in xy
        ]
    )
    store = SlideStore(path, cache_mb=1)
    for order in ("tile", "given"):
        np.testing.assert_array_equal(store.windows(xy, size, order=order, threads=threads), expected)
    seen = np.zeros(len(xy), int)
    for rows, windows in store.batches(xy, size, batch=77, threads=threads):
        np.testing.assert_array_equal(windows, expected[rows])
        seen[rows] += 1
    assert (seen == 1).all()
    assert len(store._others) == threads - 1
    coarse = [SlideStore(path).windows(xy, size, 1, threads=n) for n in (1, threads)]
    np.testing.assert_array_equal(*coarse)


def test_crowded_windows_read_each_tile_about_once(built, monkeypatch):
    read = []
    decode = SlideStore._decode
    monkeypatch.setattr(SlideStore, "_decode", lambda self, *key: (read.append(key), decode(self, *key))[1])
    xy = np.random.default_rng(0).uniform((100, 100), (800, 600), (2000, 2))
    with SlideStore(built[0], cache_mb=64 * 64 * 3 * 40 / 1e6) as store:
        for _ in store.batches(xy, 100, batch=64):
            pass
    tiles = len(set(read))
    assert tiles > 90
    assert len(read) < 2 * tiles


def test_crowded_windows_are_cut_from_few_pictures(built, monkeypatch):
    filled = []
    fill = SlideStore._fill
    monkeypatch.setattr(SlideStore, "_fill", lambda self, *rest: (filled.append(rest[-1]), fill(self, *rest))[1])
    xy = np.random.default_rng(0).uniform((100, 100), (800, 600), (2000, 2))
    SlideStore(built[0]).windows(xy, 100)
    # Blocks of 64 px: 11 x 8 of them are touched, or a few more.
    assert len(filled) <= 12 * 9


def test_files_of_threads_are_closed(built):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    store = SlideStore(built[0])
    xy = np.random.default_rng(0).uniform((0, 0), (900, 700), (200, 2))
    store.windows(xy, 64, threads=4)
    assert descriptors() > before + 4
    assert len(pickle.dumps(store)) < 5000
    store.close()
    assert descriptors() == before
    store.windows(xy, 64, threads=4)
    del store
    assert descriptors() == before


def test_damage_is_told_from_threads(tmp_path, built):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(built[0], copy)
    (copy / "0" / "c" / "0" / "1" / "1").unlink()
    with pytest.raises(UserError, match="missing"):
        SlideStore(copy).windows([[300, 300]] * 8, 8, threads=4)


def test_wrong_arguments(built):
    store = SlideStore(built[0])
    with pytest.raises(ValueError, match="level 7"):
        store.window(0, 0, 8, level=7)
    with pytest.raises(ValueError, match="order"):
        store.windows([[0, 0]], 8, order="random")
    with pytest.raises(ValueError, match="out has"):
        store.windows([[0, 0]], 8, out=np.empty((2, 8, 8, 3), np.uint8))


def test_morton_interleaves():
    np.testing.assert_array_equal(morton([[0, 0], [1, 0], [0, 1], [1, 1], [2, 0], [-5, 0]]), [0, 1, 2, 3, 4, 0])
