"""Start several processes, as a user does with torchrun, or forked from one, on a port of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from checkout import SUPPORT

JOBS = str(SUPPORT / "worker_jobs.py")
TIMEOUT = 300


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


def environment() -> dict[str, str]:
    """That of this process, its own import path included, so that what is started imports what this process does."""
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT)


def run_job(processes: int, job: str, folder: Path) -> None:
    ran = run([sys.executable, JOBS, job, str(folder), str(processes), str(free_port())])
    assert ran.returncode == 0, ran.stderr
