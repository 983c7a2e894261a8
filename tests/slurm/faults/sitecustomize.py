"""Faults in the jobs of the Slurm tests: Python runs this when it starts, where this folder is in its path.

Every process that runs a rule's script adds its name to ``ran.txt`` in the study's folder. NUCLASS_TEST_FAULTS says
what else it does, as JSON: rule -> ``{"hold": seconds}`` once, or ``{"eat": MB}`` each time; ``{"network": "off"}``
refuses to all jobs on the cluster what is not a socket of this machine's own.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

FAULTS = json.loads(os.environ.get("NUCLASS_TEST_FAULTS", "{}"))


def _say(file: str, line: str) -> None:
    with Path(file).open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")


def _refuse(self: socket.socket, address: object) -> None:
    _say("refused.txt", f"{sys.argv[:1]} {address}")
    raise OSError(101, "Network is unreachable (refused by the test)")


def _act(rule: str) -> None:
    fault = FAULTS.get(rule, {})
    marker = Path(f"held_{rule}.txt")
    if "hold" in fault and not marker.exists():
        marker.touch()
        time.sleep(fault["hold"])
    if "eat" in fault:
        kept = bytearray(os.urandom(2**20)) * fault["eat"]
        time.sleep(6)
        del kept


if "SLURM_JOB_ID" in os.environ and FAULTS.get("network") == "off":

    class _Local(socket.socket):
        def connect(self, address: object) -> None:
            if self.family != socket.AF_UNIX:
                _refuse(self, address)
            super().connect(address)

        def connect_ex(self, address: object) -> int:
            if self.family != socket.AF_UNIX:
                _refuse(self, address)
            return super().connect_ex(address)

    socket.socket = _Local

_script = Path(getattr(sys, "orig_argv", [""])[-1])
if _script.parent.name == "scripts" and _script.suffix == ".py" and _script.parent.parent.name == ".snakemake":
    _rule = _script.name.split(".")[1]
    _say("ran.txt", f"{_rule} {os.environ.get('SLURM_JOB_ID', 'here')}")
    _act(_rule)
