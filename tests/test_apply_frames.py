"""Frames of positions, as they are written."""

from __future__ import annotations

import pytest

from nuclass.apply.positions import parse_frame
from nuclass.core.errors import UserError


@pytest.mark.parametrize(
    ("text", "mpp", "what"),
    [
        ("pixels", None, "The frame of the positions is not known"),
        ("px", None, "The size of the positions' px is not stated"),
        ("px@", None, "The size of a px is no size"),
        ("px@-1", None, "The size of a px is no size"),
        ("px", float("nan"), "The size of a px is no size"),
        ("he@0.5", None, "A frame has a size it cannot have"),
    ],
)
def test_frames_that_are_none(text, mpp, what):
    with pytest.raises(UserError) as caught:
        parse_frame(text, mpp)
    assert caught.value.what == what


def test_frames_are_spelt_back():
    assert str(parse_frame(" PX@0.5 ")) == "px@0.5"
    assert str(parse_frame("µm")) == "um"
    assert parse_frame(None) is None
