"""The network, where the study still has to fetch something: servers, proxies, certificates."""

from __future__ import annotations

import os
import threading
import time
import urllib.parse
from pathlib import Path

from nuclass.core.errors import UserError
from nuclass.doctor.case import Case
from nuclass.doctor.exam import Check, Finding, failed, passed, skipped, warned

LIMIT_S = 5.0
_PROXIES = ("https_proxy", "http_proxy", "all_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def addresses(case: Case) -> dict[str, str]:
    """Return one address a server of what the study still has to fetch: slides that are not here, weights."""
    from nuclass.core.own_files import own_file
    from nuclass.doctor.weights import HUB, wanted
    from nuclass.models.backbones.hub import hub_is_off
    from nuclass.models.backbones.weights import locate
    from nuclass.xenium.fetch import BUNDLES, REGISTRY, missing_files
    from nuclass.xenium.registry import read_registry

    study = case.study
    found: dict[str, str] = {}
    if (study.slides["source"] == "dataset").any() and not study.config["fetch"]["offline"]:
        rows = [{"slide": str(slide), **row} for slide, row in study.slides.to_dict("index").items()]
        align = study.config["alignment"]["align"]
        for item in missing_files(rows, read_registry(own_file(REGISTRY, case.root)), case.root / BUNDLES, align):
            for url in item.urls[:1]:
                if url.startswith("http"):
                    found.setdefault(urllib.parse.urlsplit(url).netloc, url)
    absent = [one for one in wanted(study.models) if one.hub_id and not locate(one.hub_id, one.files, case.root)]
    if absent and hub_is_off() is None:
        hub = case.environ.get("HF_ENDPOINT") or HUB
        found.setdefault(urllib.parse.urlsplit(hub).netloc, hub)
    return found


def servers(case: Case) -> list[Finding]:
    """Each server is asked for the beginning of one file, for 5 s at most, all at the same time."""
    if not case.sound:
        return [skipped("the study cannot be read")]
    asked = addresses(case)
    if not asked:
        return [skipped("the study has nothing to fetch")]
    if case.offline:
        return [skipped(f"--offline: {', '.join(asked)} not asked")]
    findings: dict[str, Finding] = {}

    def reach(server: str, url: str) -> None:
        findings[server] = _reach(case, server, url)

    threads = [threading.Thread(target=reach, args=pair, daemon=True) for pair in asked.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + LIMIT_S + 1
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    lost = {server: _no_answer(case, server, f"no answer within {LIMIT_S:g} s") for server in asked}
    return [{**lost, **findings}[server] for server in asked]


def _reach(case: Case, server: str, url: str) -> Finding:
    from nuclass.xenium.remote import ForbiddenError, HttpSettings, NotFoundError, PastEndError, TransientError, ask

    try:
        with ask(url, HttpSettings(timeout_s=LIMIT_S, attempts=1), 0, 1):
            return passed("answers", server)
    except (NotFoundError, ForbiddenError) as error:
        return warned(f"answers, but not with {url}: {error.found}", error.fix or "check the address", server)
    except PastEndError:
        return passed("answers", server)
    except TransientError as error:
        return _no_answer(case, server, str(error))
    except UserError as error:
        return failed(f"{error.what}: {error.found}", error.fix or "check proxy and address", server)


def _no_answer(case: Case, server: str, why: str) -> Finding:
    from nuclass.doctor.weights import HUB

    hub = urllib.parse.urlsplit(case.environ.get("HF_ENDPOINT") or HUB).netloc
    command = "nuclass backbones fetch NAME" if server == hub else f"snakemake --cores 4{case.options} -- bundles"
    return failed(
        f"no answer: {why}",
        f"on a machine with a network, such as a login node: {command}   or set https_proxy",
        server,
    )


def _host(value: str) -> str | None:
    """Return the machine that the address of a proxy names, with or without ``http://`` before it."""
    try:
        return urllib.parse.urlsplit(value if "://" in value else f"http://{value}").hostname
    except ValueError:
        return None


def proxy(case: Case) -> Finding:
    """The proxies that the environment names."""
    named = {}
    for name in _PROXIES:
        value = case.environ.get(name) or case.environ.get(name.upper())
        if value:
            named[name] = value
    if not named:
        return passed("none is set")
    wrong = [name for name, value in named.items() if not _host(value)]
    told = ", ".join(f"{name} {value.rpartition('@')[2]}" for name, value in named.items())
    if wrong:
        return failed(f"{told}: {', '.join(wrong)} is no address", f"export {wrong[0]}=http://HOST:PORT")
    return passed(told)


def certificates(case: Case) -> Finding:
    """The certificates by which servers are known."""
    import ssl

    for name in _CERTIFICATES:
        value = case.environ.get(name)
        if value and not Path(value).is_file() and not (name != "SSL_CERT_FILE" and Path(value).is_dir()):
            return failed(
                f"{name} names {value}, which is not there", f"unset {name}, or name your institute's certificates"
            )
    places = ssl.get_default_verify_paths()
    given = case.environ.get("SSL_CERT_FILE")
    known = [place for place in (given, places.cafile, places.capath) if place]
    if not known or not any(
        Path(place).is_file() or (Path(place).is_dir() and any(os.scandir(place))) for place in known
    ):
        return failed(
            "this Python finds no certificates of authorities, so no server is trusted",
            "install ca-certificates, or: export SSL_CERT_FILE=$(python -m certifi)",
        )
    return passed(f"of {known[0]}")


CHECKS = [
    Check("network", "proxy", proxy),
    Check("network", "certificates", certificates),
    Check("network", "servers", servers, 20.0),
]
