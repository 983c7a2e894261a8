"""Errors that speak to the person who can mend them."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the input or the configuration, told without a traceback.

    Parameters
    ----------
    what
        What failed, in one sentence.
    where
        The file, key or row.
    found, expected
        What was there, and what should have been.
    fix
        What to do now.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object | None = None,
        found: object | None = None,
        expected: object | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.found = found
        self.expected = expected
        self.fix = fix
        super().__init__(self._render())

    def _render(self) -> str:
        parts = (("where", self.where), ("found", self.found), ("expected", self.expected), ("to mend it", self.fix))
        lines = [self.what]
        lines += [f"  {name + ':':<12}{value}" for name, value in parts if value is not None]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive a trip between processes with all parts."""
        return _rebuild, (self.what, self.where, self.found, self.expected, self.fix)


def _rebuild(what: str, where: object, found: object, expected: object, fix: str | None) -> UserError:
    return UserError(what, where=where, found=found, expected=expected, fix=fix)


def closest(name: str, valid: list[str], cutoff: float = 0.6) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest valid name, or an empty string where none is near (0 to 1)."""
    from difflib import get_close_matches

    near = get_close_matches(name, valid, n=1, cutoff=cutoff)
    return f" Did you mean '{near[0]}'?" if near else ""
