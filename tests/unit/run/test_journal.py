"""One run at a time holds a journal, also when several come upon what a dead one left."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ropescope.base.errors import ResultError
from ropescope.run.journal import journal_folder, journal_of


def test_a_lock_that_another_run_takes_over_first_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "result.nc"
    lock = journal_folder(output) / "lock"
    lock.parent.mkdir()
    lock.write_text(f"{socket.gethostname()} 1 gone-since-long")
    own, holder = Path.rename, f"{socket.gethostname()} 2 alive"

    def late(path: Path, target: Path) -> Path:
        monkeypatch.undo()
        lock.write_text(holder)
        return own(path, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(ResultError, match=r"another run \(host and process: .* 2\) is writing"), journal_of(output, {}):
        pass
    assert lock.read_text() == holder and [entry.name for entry in lock.parent.iterdir()] == ["lock"]
