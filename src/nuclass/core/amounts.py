"""Times and memory as a figure or table tells them."""

from __future__ import annotations

GIB_IN_MIB = 1024
NOTHING = "–"
_SCALES = ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "h"), (2 * 60, 60, "min"), (0, 1, "s"))


def duration(seconds: float) -> str:
    """Return a time in its two largest units: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``, ``3 d 04 h``.

    A dash for NaN.
    """
    if seconds != seconds:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def time_scale(seconds: float) -> tuple[int, str]:
    """Return the unit for an axis that ends at ``seconds``: its length in seconds, and its name."""
    return next((size, name) for least, size, name in _SCALES if seconds >= least)


def memory(mib: float) -> str:
    """Return memory given in MiB (2^20 bytes) as ``584 MiB`` or ``1.6 GiB``; a dash for NaN."""
    if mib != mib:
        return NOTHING
    gib = mib / GIB_IN_MIB
    return f"{gib:.1f} GiB" if gib >= 0.95 else f"{mib:.0f} MiB"
