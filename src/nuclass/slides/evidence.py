"""Where the nuclei of the picture lie, seen from where the cells say: measured block by block.

Nuclei are blue with haematoxylin. A block is a square of tissue; inside it the outlines of the bundle's nuclei are
laid over the haematoxylin of the picture and moved about. At each shift the mean inside the outlines is compared
with the mean in a ring around them: the landscape. If the alignment holds, it has one high peak in its middle;
if it is off, the peak lies elsewhere; on another section there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Change = Callable[[Floats], Floats]
Read = Callable[[int, int, int, int], NDArray[np.uint8]]

# The ring starts outside the blurred edge of a nucleus and ends before most neighbours.
RING_UM = (0.75, 3.0)
# Within this distance of a peak lie its slopes and the nearest neighbours; beyond it, the ground it stands out of.
PEAK_UM = 8.0
MIN_NUCLEI = 12
# Nuclei are darker than the ring around them by 1 to 2.5 standard deviations, 0.5 where they are crowded and their
# outlines poor; on another section of the same density by up to 0.35. Less than the first counts only with twice the
# score, less than the second never.
MIN_HEIGHT, LEAST_HEIGHT = 0.4, 0.2
# Squares are doubled so often where nuclei are sparse or few.
_DOUBLINGS = 2
# Loops over single blocks stop here; more blocks hardly change a mean over thousands of nuclei.
MAX_BLOCKS = 64


@dataclass(frozen=True)
class Nuclei:
    """Outlines of nuclei, polygon after polygon, in any one frame.

    Attributes
    ----------
    xy
        (V, 2) vertices; ``change`` brings them to the frame.
    start
        (P,) the row of each polygon's first vertex, rising from 0.
    centre
        (P, 2) area centroids, in the frame.
    change
        From the frame of ``xy`` to this one; None where they are the same. A slide has millions of vertices, of which
        few are looked at, so they are brought over when asked for.
    """

    xy: Floats
    start: NDArray[np.int64]
    centre: Floats
    change: Change | None = None

    def __len__(self) -> int:
        return len(self.start)

    def mapped(self, change: Change) -> Nuclei:
        """Return the same outlines in another frame."""
        before = self.change
        both = change if before is None else lambda xy: change(before(xy))
        return Nuclei(self.xy, self.start, change(self.centre), both)

    def polygons(self, rows: NDArray[np.intp]) -> Iterator[Floats]:
        """Yield the vertices of some polygons, each (n, 2), in the frame."""
        stop = np.append(self.start[1:], len(self.xy))
        for row in rows:
            vertices = self.xy[self.start[row] : stop[row]]
            yield vertices if self.change is None else self.change(vertices)


@dataclass(frozen=True)
class View:
    """A picture at one resolution.

    Attributes
    ----------
    read
        ``read(x0, y0, width, height)`` returns (height, width, 3) uint8, white beyond the picture.
    shape
        (height, width) in the view's px.
    mpp
        Micrometres per px of the view.
    factor
        H&E level-0 px per px of the view.
    """

    read: Read
    shape: tuple[int, int]
    mpp: float
    factor: float


@dataclass(frozen=True)
class Block:
    """What one block says.

    ``centre`` (x, y) is the mean place of its nuclei in the view's px; ``landscape`` (2R+1, 2R+1) in standard
    deviations.
    """

    centre: tuple[float, float]
    n_nuclei: int
    landscape: Floats


@dataclass(frozen=True)
class Peak:
    """The top of a landscape. ``x_um y_um`` from its middle; ``height`` and its ``score`` above the ground around it.

    ``height`` is a difference of means in standard deviations of the haematoxylin; ``score`` is the height above
    the mean of all shifts farther than :data:`PEAK_UM`, in their standard deviations. ``centre`` is the height where
    the cells say. ``inner`` tells whether the top lies inside the landscape, not at its edge.
    """

    x_um: float
    y_um: float
    height: float
    score: float
    centre: float
    inner: bool

    @property
    def distance_um(self) -> float:
        """Distance of the top from the middle."""
        return float(np.hypot(self.x_um, self.y_um))

    def stands_out(self, score: float) -> bool:
        """Whether this is a peak at all: of this score, inside the landscape, and of nuclei that are dark enough."""
        high = self.height >= MIN_HEIGHT or (self.height >= LEAST_HEIGHT and self.score >= 2 * score)
        return self.score >= score and self.inner and high


def haematoxylin(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the haematoxylin of ``(H, W, 3)`` pixels, arbitrary units, by colour deconvolution (Ruifrok 2001)."""
    from skimage.color import rgb2hed

    stain: NDArray[np.float32] = rgb2hed(rgb.astype(np.float32) / np.float32(255))[..., 0].astype(np.float32)
    return stain


def choose_blocks(nuclei: Nuclei, view: View, block_um: float, most: int = MAX_BLOCKS) -> tuple[Floats, float]:
    """Return squares with enough nuclei, spread evenly over the tissue, and their side in um.

    The top-left corners (B, 2) are in the view's px. The side is ``block_um``, doubled once or twice where most nuclei
    would lie in squares with too few.
    """
    from nuclass.slides.store import morton

    height, width = view.shape
    on = nuclei.centre[((nuclei.centre >= 0) & (nuclei.centre < (width, height))).all(axis=1)]
    low = on.min(axis=0) if len(on) else np.zeros(2)
    for doubling in range(_DOUBLINGS + 1):
        side = block_um * 2**doubling / view.mpp
        squares, counts = np.unique(np.floor((on - low) / side).astype(np.int64), axis=0, return_counts=True)
        enough = counts >= MIN_NUCLEI
        if counts[enough].sum() >= 0.5 * len(on):
            break
    squares = squares[enough]
    if len(squares) > most:
        squares = squares[np.argsort(morton(squares), kind="stable")]
        squares = squares[np.linspace(0, len(squares) - 1, most).round().astype(int)]
    return low + squares * side, side * view.mpp


def measure_block(
    nuclei: Nuclei, view: View, corner: Sequence[float], block_um: float, search_um: float
) -> Block | None:
    """Return the landscape of one block, or None where it holds too few whole nuclei or nothing but glass."""
    from scipy.ndimage import distance_transform_edt

    side, reach = round(block_um / view.mpp), max(round(search_um / view.mpp), 2)
    x0, y0 = (int(np.floor(v)) for v in corner)
    inside, middle, n = _raster(nuclei, x0, y0, side)
    if n < MIN_NUCLEI:
        return None
    distance = distance_transform_edt(~inside) * view.mpp
    ring = (distance > RING_UM[0]) & (distance <= RING_UM[1])
    if not inside.any() or not ring.any():
        return None
    stain = haematoxylin(view.read(x0 - reach, y0 - reach, side + 2 * reach, side + 2 * reach))
    spread = float(stain[reach:-reach, reach:-reach].std())
    if spread < 1e-4:
        return None
    weight = inside / inside.sum() - ring / ring.sum()
    return Block(middle, n, _correlated(stain, weight) / spread)


def _correlated(image: NDArray[np.float32], weight: Floats) -> Floats:
    """Return the sum of ``image`` under ``weight`` at every place where the latter lies wholly on the former."""
    # scipy.signal does the same and takes a second to import, in every job.
    from scipy.fft import irfft2, next_fast_len, rfft2

    shape = tuple(next_fast_len(n, True) for n in image.shape)
    sums = irfft2(rfft2(image.astype(np.float64), shape) * np.conj(rfft2(weight, shape)), shape)
    height, width = np.subtract(image.shape, weight.shape) + 1
    return np.asarray(sums[:height, :width], np.float64)


def measure_blocks(
    nuclei: Nuclei, view: View, block_um: float, search_um: float, most: int = MAX_BLOCKS
) -> list[Block]:
    """Return the landscapes of blocks all over the tissue; ``nuclei`` in the view's px."""
    corners, side_um = choose_blocks(nuclei, view, block_um, most)
    blocks = (measure_block(nuclei, view, corner, side_um, search_um) for corner in corners.tolist())
    return [block for block in blocks if block is not None]


def pooled(blocks: Sequence[Block]) -> Floats:
    """Return the mean landscape of blocks, each weighted by its nuclei."""
    weight = np.array([block.n_nuclei for block in blocks], np.float64)
    mean: Floats = np.tensordot(weight / weight.sum(), np.stack([block.landscape for block in blocks]), axes=1)
    return mean


def find_peak(landscape: Floats, mpp: float) -> Peak:
    """Return the top of a landscape, refined below a pixel by parabolas."""
    y, x = (int(v) for v in np.unravel_index(int(landscape.argmax()), landscape.shape))
    reach = (len(landscape) - 1) // 2
    px, py = _vertex(landscape[y], x), _vertex(landscape[:, x], y)
    rows, columns = np.mgrid[: len(landscape), : len(landscape)]
    far = landscape[np.hypot(rows - y, columns - x) * mpp > PEAK_UM]
    height = float(landscape[y, x])
    score = (height - far.mean()) / far.std() if len(far) > 8 and far.std() > 0 else 0.0
    inner = 0 < y < 2 * reach and 0 < x < 2 * reach
    return Peak((px - reach) * mpp, (py - reach) * mpp, height, float(score), float(landscape[reach, reach]), inner)


def _raster(nuclei: Nuclei, x0: int, y0: int, side: int) -> tuple[NDArray[np.bool_], tuple[float, float], int]:
    """Return the pixels (side, side) inside the nuclei that lie in a square, their mean place, and how many."""
    from skimage.draw import polygon

    mask = np.zeros((side, side), bool)
    place = nuclei.centre - (x0, y0)
    rows = np.flatnonzero(((place >= 0) & (place < side)).all(axis=1))
    for vertices in nuclei.polygons(rows):
        # Pixel i has its centre at i + 0.5; the library asks at whole numbers.
        lines, columns = polygon(vertices[:, 1] - y0 - 0.5, vertices[:, 0] - x0 - 0.5, mask.shape)
        mask[lines, columns] = True
    x, y = nuclei.centre[rows].mean(axis=0) if len(rows) else (x0 + side / 2, y0 + side / 2)
    return mask, (float(x), float(y)), len(rows)


def _vertex(values: Floats, i: int) -> float:
    if not 0 < i < len(values) - 1:
        return float(i)
    left, here, right = values[i - 1 : i + 2]
    curve = left - 2 * here + right
    return i + float(0.5 * (left - right) / curve) if curve < 0 else float(i)
