"""A drawn slide as Leica writes it: a plane, of which only a part was scanned, that openslide puts together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

_NM, _MACRO = 500, 10
"""Nanometres per px of the scan, and px of the scan per px of the picture of the whole plane."""
_ABOUT = """<image name="{name}" uuid="{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="drawn" version="1"/>
<pixels sizeX="{width}" sizeY="{height}"><dimension sizeX="{width}" sizeY="{height}" r="0" ifd="{ifd}"/></pixels>
<view sizeX="{across}" sizeY="{down}" offsetX="{x}" offsetY="{y}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image>"""


def write_scn(path: Path, scan: np.ndarray, corner: tuple[int, int], plane: tuple[int, int]) -> Path:
    """Write a scan (H, W, 3), lossless, with its top left corner (x, y) on a plane (width, height), multiples of 10."""
    overview = np.full((plane[1] // _MACRO, plane[0] // _MACRO, 3), 230, np.uint8)
    images = []
    for ifd, (name, pixels, step, place) in enumerate(
        [("macro", overview, _MACRO * _NM, (0, 0)), ("scan", scan, _NM, corner)]
    ):
        height, width = pixels.shape[:2]
        views = {"across": width * step, "down": height * step, "x": place[0] * _NM, "y": place[1] * _NM}
        images.append(
            _ABOUT.format(name=name, ifd=ifd, width=width, height=height, objective=20 - 19 * (1 - ifd), **views)
        )
    about = '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
    about += f'<collection name="drawn" uuid="c" sizeX="{plane[0] * _NM}" sizeY="{plane[1] * _NM}"><barcode/>'
    about += "".join(images) + "</collection></scn>"
    options = {"photometric": "rgb", "compression": "deflate", "metadata": None, "software": False, "tile": (64, 64)}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(overview, description=about, **options)
        tiff.write(scan, **options)
    return path
