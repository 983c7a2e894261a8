"""Bring the labels that were published with a slide into its folder."""

from __future__ import annotations

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.xenium.download import download, verify
from nuclass.xenium.inventory import given_name
from nuclass.xenium.remote import ForbiddenError, HttpSettings, NotFoundError
from nuclass.xenium.slide_folder import SlideFolder

CELL_GROUPS = "cell_groups"
_log = get_logger(__name__)


def bring_given(place: SlideFolder, settings: HttpSettings) -> str | None:
    """Return the name in the folder of the labels published with a slide, None where there are none.

    They are linked where they lie beside the output, else downloaded where the dataset has them. A row that
    names its labels, or says ``none``, needs them not.

    Raises
    ------
    UserError
        If they are not at an address where others found them.
    """
    name = given_name(place.slide)
    file = None if place.row["given"] else place.given_on_disk()
    if file is None and place.record.how(name) == "link":
        place.record.remove(name)
    if place.row["given"]:
        return None
    remote = place.remote(CELL_GROUPS)
    if file is not None:
        place.link(file, name)
    elif place.keeps(name):
        if not place.record.holds(name):
            place.record.add(name, "found", name, verify(place.out / name, remote.records, str(place.out / name)))
    elif not remote.addresses:
        return None
    else:
        try:
            url, digest = download(remote.urls, place.out / name, settings, remote.records, remote.inferred)
        except (NotFoundError, ForbiddenError) as error:
            if len(remote.inferred) == len(remote.addresses):
                _log.warning("%s: no published labels at %s (%s)", place.slide, error.where, error.found)
                return None
            raise UserError(
                f"The published labels of slide '{place.slide}' are not at their address",
                where=error.where,
                found=error.found,
                fix="give their file in the column 'given' of the slide sheet, or write none there to do without",
            ) from error
        place.record.add(name, "download", url, digest)
    return name


def lacks_given(place: SlideFolder) -> bool:
    """Return whether published labels would have to be downloaded; an address that is a guess does not count."""
    if place.row["given"] or place.given_on_disk() is not None or place.keeps(given_name(place.slide)):
        return False
    remote = place.remote(CELL_GROUPS)
    return len(remote.inferred) < len(remote.addresses)
