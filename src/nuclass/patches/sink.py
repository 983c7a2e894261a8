"""Write HDF5 on a disk that may fill up.

HDF5 keeps what it could not write, tries again when it closes, fails again, and takes the process down at its end. Here
it writes to a file object that takes everything after the first failure without a word, so that HDF5 closes in peace,
and that then tells what happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from nuclass.core.errors import UserError

# Files that HDF5 1.10 and later open, which is the first with virtual datasets.
LIBVER = ("earliest", "v110")


class Sink:
    """A file to write that remembers its first failure and takes no notice of further ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        self._file = path.open("w+b", buffering=0)

    def write(self, data: Any) -> int:
        """Write all of ``data``; after a failure do nothing."""
        view = memoryview(data)
        done = 0
        try:
            while self.error is None and done < len(view):
                done += self._file.write(view[done:])
        except OSError as error:
            self.error = error
        return len(view)

    def read(self, size: int = -1) -> bytes:
        """Read bytes; by this method h5py knows a file object."""
        return self._file.read(size) or b""

    def readinto(self, buffer: Any) -> int:
        """Read into ``buffer``; what was not written is zero."""
        view = memoryview(buffer)
        done = self._file.readinto(view) or 0
        view[done:] = bytes(len(view) - done)
        return len(view)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def truncate(self, size: int) -> int:
        """Cut or lengthen the file; after a failure do nothing."""
        try:
            if self.error is None:
                self._file.truncate(size)
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """Do nothing: no byte is held back."""

    def check(self) -> None:
        """Tell a failure, if there was one.

        Raises
        ------
        UserError
            The disk or quota is full, or what else the system said.
        """
        if self.error is not None:
            raise UserError(
                "The disk is full" if self.error.errno in (27, 28, 122) else "The disk cannot be written",
                where=self.path.parent,
                found=str(self.error),
                fix="free space or quota on that disk and start again; nothing was kept of this export",
            ) from self.error

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@contextmanager
def written_h5(path: Path) -> Iterator[tuple[Any, Sink]]:
    """Open a new HDF5 file that closes in peace on a full disk; call ``check`` of the sink now and then.

    Raises
    ------
    UserError
        See :meth:`Sink.check`.
    """
    import h5py

    with Sink(path) as sink:
        try:
            with h5py.File(sink, "w", libver=LIBVER) as file:
                yield file, sink
        finally:
            sink.check()
