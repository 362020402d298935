"""Start several processes, as a user does with torchrun, or forked from one, on a port of their own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

from forking import TIMEOUT, environment, forked


def heed_interrupts() -> None:
    """A shell that starts the tests in the background has them, and what they start, ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def torchrun(processes: int, *arguments: str) -> list[str]:
    """A command line; what follows torchrun's own options is a script or `-m` and a module."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--master-port", str(free_port())]
    return [*launcher, "--nproc-per-node", str(processes), *arguments]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT)


def run_job(processes: int, job: str, folder: Path) -> None:
    """What torchrun would start, forked."""
    meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places = [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    code = "import sys, worker_jobs; worker_jobs.take_part(*sys.argv[1:])"
    for ran in forked(code, job, folder, environments=places):
        assert ran.returncode == 0, ran.stderr
