"""Run Python code in processes forked from one that has imported torch and transformers already.

Importing them takes longer than most of what tests ask of a process of its own. Tests of what happens while a process
starts, or after its last line, start one themselves.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkout import SUPPORT

TIMEOUT = 300

Ran = subprocess.CompletedProcess[str]


def environment() -> dict[str, str]:
    """That of this process, its own import path included, so that what is started imports what this process does."""
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def forked(code: str, *arguments: object, environments: Sequence[Mapping[str, str]] = ({},)) -> list[Ran]:
    """Run the code once for each of these additions to the environment, all at once, until all have ended.

    `arguments` are in its sys.argv, from 1 on.
    """
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        asked = {
            "code": code,
            "arguments": ["-c", *map(str, arguments)],
            "environments": [environment() | given for given in environments],
            "folder": folder,
        }
        print(json.dumps(asked), file=server.stdin, flush=True)
        if not select.select([server.stdout], [], [], TIMEOUT)[0]:
            server.kill()
            _server.cache_clear()
            raise TimeoutError(f"forked processes had not ended after {TIMEOUT} s:\n{code}")
        codes = json.loads(server.stdout.readline())
        said = [[Path(folder, f"{place}.{name}").read_text() for name in ("out", "err")] for place in range(len(codes))]
    return [Ran([code], status, *words) for status, words in zip(codes, said, strict=True)]


@functools.cache
def _server() -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, __file__], env=environment(), **pipes)
    atexit.register(server.communicate)
    return server


def _serve() -> None:
    """Answer every line of standard input, once all that it asks for have ended, with their exit codes."""
    import worker_jobs

    for architecture in worker_jobs.ARCHITECTURES:
        architecture.shared()
    for line in sys.stdin:
        asked = json.loads(line)
        children = [_start(asked, place) for place in range(len(asked["environments"]))]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def _start(asked: Mapping[str, Any], place: int) -> int:
    if child := os.fork():
        return child
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "out"), (2, "err")):
            path = Path(asked["folder"], f"{place}.{name}")
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
        os.environ.clear()
        os.environ.update(asked["environments"][place])
        sys.argv = asked["arguments"]
        exec(compile(asked["code"], "<forked>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
