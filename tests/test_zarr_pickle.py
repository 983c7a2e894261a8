"""An OME-Zarr slide whose chunks would run a program when they are decoded: refused, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numcodecs
import pytest

from nuclass.apply.slide import open_slide
from nuclass.core.errors import UserError

SHAPE = (64, 64, 3)


class Payload:
    """What is unpickled makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def write_image(root: Path, chunk: bytes, *, consolidated: bool = False, **coded: Any) -> Path:
    """Write an OME-Zarr image 0.4 of one chunk; ``consolidated`` tells its codecs in ``.zmetadata`` alone."""
    plain = {
        **{"zarr_format": 2, "shape": SHAPE, "chunks": SHAPE, "dtype": "|u1", "order": "C", "fill_value": 0},
        **{"compressor": None, "filters": None, "dimension_separator": "."},
    }
    scale = [{"type": "scale", "scale": [0.25, 0.25, 1.0]}]
    axes = [{"name": name, "unit": "micrometer"} if name in "yx" else {"name": name} for name in "yxc"]
    attributes = {"multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]}
    files = {".zgroup": {"zarr_format": 2}, ".zattrs": attributes, "0/.zarray": plain | coded}
    if consolidated:
        files[".zmetadata"] = {"zarr_consolidated_format": 1, "metadata": dict(files)}
        files["0/.zarray"] = plain
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(data))
    (root / "0" / "0.0.0").write_bytes(chunk)
    return root


@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize(
    "coded",
    [
        {"filters": [{"id": "pickle", "protocol": 4}]},
        {"filters": [{"id": "delta", "dtype": "|u1"}, {"id": "pickle", "protocol": 4}]},
        {"compressor": {"id": "pickle", "protocol": 4}},
        {"dtype": "|O", "fill_value": None, "filters": [{"id": "pickle", "protocol": 4}]},
    ],
)
def test_a_pickled_image_is_refused_and_not_unpickled(coded, consolidated, tmp_path, monkeypatch):
    # Where a user's environment allows it, for other programs.
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True)
    made, name = tmp_path / "made", coded.get("dtype", "|u1")
    chunk = pickle.dumps(Payload(made))
    numcodecs.get_codec({"id": "pickle"}).decode(chunk)
    assert made.is_dir(), "the payload works"
    made.rmdir()
    path = write_image(tmp_path / "he.zarr", chunk, consolidated=consolidated, **coded)
    with pytest.raises(UserError) as caught:
        open_slide(path, 0.25, 0.25)
    told = str(caught.value).splitlines()
    assert told[:2] == ["The H&E image cannot be read", f"  where:      {path}"]
    assert "'object_codec_id': 'pickle'" in told[2]
    assert f"'name': '{name}'" in told[2]
    assert told[3].startswith("  expected:   an OME-Zarr image, version 0.4 or 0.5")
    assert not made.exists()


def test_the_same_image_with_other_codecs_is_opened(tmp_path):
    path = write_image(tmp_path / "he.zarr", b"", filters=[{"id": "delta", "dtype": "|u1"}], compressor={"id": "zstd"})
    one = open_slide(path, None, 0.25)
    assert (one.shape, one.mpp) == ((64, 64), 0.25)
