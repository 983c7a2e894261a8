"""Pyramidal OME-TIFFs as 10x ships them: DAPI morphology and post-Xenium H&E.

The files carry no date, no software version and no random identifier, so the same pixels give the
same bytes. The OME-XML is written by hand after a file of XOA 3.0.0.15.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
import tifffile

from nuclass.core.files import atomic_path
from nuclass.synthetic.identifiers import derived_uuid

TILE = 1024
_SMALLEST = 512
_OPEN = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    'xsi:schemaLocation="http://www.openmicroscopy.org/Schemas/OME/2016-06 '
    'http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd"'
)


def halve(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``image`` (H, W) or (H, W, C) at half the size: the rounded mean of 2 x 2 pixels.

    An odd last row or column is left out, so level sizes are rounded down.
    """
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    even = image[:height, :width]
    wide = np.uint16 if image.dtype == np.uint8 else np.uint32
    total: Any = even[0::2, 0::2].astype(wide)
    total += even[1::2, 0::2]
    total += even[0::2, 1::2]
    total += even[1::2, 1::2]
    return ((total + 2) >> 2).astype(image.dtype)


def level_count(height: int, width: int) -> int:
    """Return the number of pyramid levels: halved until the longer side is below 512 px."""
    levels = 1
    while max(height, width) >= _SMALLEST and min(height, width) >= 2:
        height, width, levels = height // 2, width // 2, levels + 1
    return levels


def _write_levels(
    tiff: tifffile.TiffWriter, image: npt.NDArray[Any], description: bytes | None, **options: Any
) -> None:
    """Write one plane and its pyramid: the full size as a page, the rest as its SubIFDs."""
    levels = level_count(*image.shape[:2])
    options = {"tile": (TILE, TILE), "metadata": None, "software": "tifffile.py", **options}
    tiff.write(image, subifds=levels - 1, description=description, **options)
    if "resolution" in options:
        options["resolution"] = tuple(value / 2 for value in options["resolution"])
    for _ in range(levels - 1):
        image = halve(image)
        tiff.write(image, subfiletype=1, **options)
        if "resolution" in options:
            options["resolution"] = tuple(value / 2 for value in options["resolution"])


def write_morphology(
    path: str | Path,
    planes: Iterable[npt.NDArray[np.uint16]],
    n_planes: int,
    *,
    pixel_size: float = 0.2125,
    z_step: float = 3.0,
    file_uuid: str | None = None,
) -> tuple[int, int]:
    """Write a DAPI image or stack as a pyramidal OME-TIFF (zstd; 10x uses JPEG 2000).

    Parameters
    ----------
    path
        The file to write.
    planes
        ``n_planes`` arrays (H, W) uint16, one a z level; taken one at a time.
    n_planes
        The number of planes, 1 for a focus image.
    pixel_size, z_step
        Micrometres.
    file_uuid
        If given, the OME-XML names the file with it, as for ``morphology_focus``.

    Returns
    -------
    (H, W) of the planes.
    """
    shape: tuple[int, int] | None = None
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
        for index, plane in enumerate(planes):
            if plane.ndim != 2 or plane.dtype != np.uint16 or (shape is not None and plane.shape != shape):
                raise ValueError(f"plane {index} is {plane.dtype} {plane.shape}; expected uint16 and {shape or '2-D'}")
            shape = (int(plane.shape[0]), int(plane.shape[1]))
            description = None
            if index == 0:
                description = _dapi_xml(Path(path).name, shape, n_planes, pixel_size, z_step, file_uuid)
            _write_levels(
                tiff, plane, description, photometric="minisblack", compression="zstd", compressionargs={"level": 1}
            )
        if shape is None or index + 1 != n_planes:
            raise ValueError(f"expected {n_planes} planes, found {0 if shape is None else index + 1}")
    return shape


def _dapi_xml(
    name: str, shape: tuple[int, int], n_planes: int, pixel_size: float, z_step: float, file_uuid: str | None
) -> bytes:
    height, width = shape
    depth = f' PhysicalSizeZ="{z_step}" PhysicalSizeZUnit="µm"' if file_uuid is None else ""
    plane = f'<TiffData PlaneCount="{n_planes}"/>'
    identity = ""
    if file_uuid is not None:
        identity = f' UUID="urn:uuid:{file_uuid}"'
        plane = (
            f'<TiffData FirstZ="0" FirstT="0" FirstC="0" PlaneCount="{n_planes}">'
            f"<UUID FileName={quoteattr(name)}>urn:uuid:{file_uuid}</UUID></TiffData>"
        )
    return (
        f"{_OPEN}{identity}>"
        '<Plate ID="Plate:0" WellOriginX="0.0" WellOriginXUnit="µm" WellOriginY="0.0" WellOriginYUnit="µm"/>'
        '<Instrument ID="Instrument:0"><Microscope Manufacturer="10x Genomics" Model="Xenium"/></Instrument>'
        '<Image ID="Image:0"><InstrumentRef ID="Instrument:0"/>'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="{width}" SizeY="{height}" '
        f'SizeZ="{n_planes}" SizeC="1" SizeT="1" PhysicalSizeX="{pixel_size}" PhysicalSizeXUnit="µm" '
        f'PhysicalSizeY="{pixel_size}" PhysicalSizeYUnit="µm"{depth}>'
        '<Channel ID="Channel:0" Name="DAPI" SamplesPerPixel="1"><AnnotationRef ID="Annotation:0"/></Channel>'
        f'{plane}</Pixels><AnnotationRef ID="Annotation:0"/></Image>'
        '<StructuredAnnotations><MapAnnotation ID="Annotation:0"><Value><M K="Purpose">Nuclear</M></Value>'
        "</MapAnnotation></StructuredAnnotations></OME>"
    ).encode()


def write_he(
    path: str | Path, image: npt.NDArray[np.uint8], mpp_embedded: float, seed: int = 0, *, quality: int = 90
) -> Path:
    """Write an H&E image as a tiled, pyramidal RGB OME-TIFF (JPEG), levels as SubIFDs.

    Parameters
    ----------
    path
        The file to write, ``*_he_image.ome.tif``.
    image
        (H, W, 3) uint8.
    mpp_embedded
        The pixel size in micrometres that the file claims; it may differ from the true one, as it
        does in many public files.
    seed
        Decides the file's UUID.
    quality
        JPEG quality, 1 to 100.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the H&E image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    file = Path(path)
    height, width = image.shape[:2]
    xml = (
        f'{_OPEN} UUID="urn:uuid:{derived_uuid(seed, file.name)}">'
        f'<Image ID="Image:0" Name={quoteattr(file.name)}>'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" Interleaved="true" SizeX="{width}" '
        f'SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{mpp_embedded}" PhysicalSizeXUnit="µm" '
        f'PhysicalSizeY="{mpp_embedded}" PhysicalSizeYUnit="µm">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData PlaneCount="1"/></Pixels></Image></OME>'
    ).encode()
    per_cm = 1e4 / mpp_embedded
    with atomic_path(file) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
        _write_levels(
            tiff,
            image,
            xml,
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": quality},
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
        )
    return file
