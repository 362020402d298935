"""What the environment says of other processes is checked, and they are waited for with a word, a limit and an end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import ropescope as rs
from checkout import SUPPORT
from forking import forked
from launching import TIMEOUT, environment, free_port, heed_interrupts, run, torchrun
from ropescope import cli
from ropescope.base.errors import InputError
from ropescope.run.launch import Launch, LaunchError, _met, launch_of, launched
from ropescope.run.workers import Workers
from synthetic import synthetic_result

LEFT = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
COMMAND = [sys.executable, "-m", "ropescope"]


@contextmanager
def started(command: list[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    whole = environment() | LEFT | {"MASTER_PORT": str(free_port())} | variables
    process = subprocess.Popen(
        command,
        env=whole,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told(command: list[str], **variables: str) -> tuple[int, str, str]:
    """Exit code, what was printed, and what was said, once a command has ended by itself."""
    with started(command, **variables) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, output, errors


@pytest.fixture
def measuring(saved: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("the model of the models\n" * 400)
    few = ["--length", "64", "--frame-length", "32", "--hop-length", "16", "--count", "2"]
    output = ["--output", str(tmp_path / "result.nc")]
    return ["measure", str(saved), "--corpus", str(tmp_path / "text.txt"), *few, *output]


@pytest.fixture
def commands(measuring: list[str], saved: Path, tmp_path: Path) -> dict[str, list[str]]:
    """The commands whose work several processes share."""
    rs.save(synthetic_result(), tmp_path / "measured.nc")
    of = [str(saved), str(tmp_path / "measured.nc")]
    sweeping = ["sweep", *of, "--corpus", str(tmp_path / "text.txt"), "--output", str(tmp_path / "sweep.nc")]
    return {"measure": measuring, "sweep": sweeping, "tasks": ["tasks", *of, "--output", str(tmp_path / "tasks.nc")]}


def test_the_variables_of_a_launcher_make_a_launch() -> None:
    assert launch_of(LEFT) == Launch(0, 2, "127.0.0.1", 29500, 600.0)
    assert launch_of(LEFT | {"RANK": "1", "ROPESCOPE_JOIN_TIMEOUT": "5"}) == Launch(1, 2, "127.0.0.1", 29500, 5.0)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"MASTER_ADDR": "node7", "MASTER_PORT": "nonsense"},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_PORT": ""},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"},
        {"LOCAL_RANK": "nonsense"},
    ],
)
def test_what_is_no_launch_starts_a_process_alone(variables: dict[str, str]) -> None:
    assert launch_of(variables) is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "2"}, "RANK is 2 in the environment, but WORLD_SIZE is 2: ranks run from 0"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK is 1 in the environment, but WORLD_SIZE is 1"),
        ({"RANK": "-1"}, "RANK is '-1' in the environment; it is a whole number from 0"),
        ({"RANK": "first"}, "RANK is 'first' in the environment; it is a whole number from 0"),
        ({"RANK": ""}, "RANK is '' in the environment"),
        ({"RANK": None}, "RANK is not set in the environment, but WORLD_SIZE is"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set in the environment, but RANK is"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '' in the environment; it is a whole number from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' in the environment; it is a whole number from 1"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE is '2.0' in the environment"),
        ({"WORLD_SIZE": "two", "RANK": None}, "WORLD_SIZE is 'two' in the environment"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
        ({"MASTER_ADDR": " "}, "MASTER_ADDR is empty or not set"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is empty or not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is '' in the environment; it is a whole number from 1 to 65535"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000' in the environment"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set in the environment, but RANK and WORLD_SIZE is"),
        ({"LOCAL_RANK": "nonsense"}, "LOCAL_RANK is 'nonsense' in the environment; it is a whole number from 0"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1' in the environment"),
        ({"ROPESCOPE_JOIN_TIMEOUT": "soon"}, "ROPESCOPE_JOIN_TIMEOUT is 'soon' in the environment; it is a number"),
        ({"ROPESCOPE_JOIN_TIMEOUT": "nan"}, "ROPESCOPE_JOIN_TIMEOUT is 'nan'"),
        ({"ROPESCOPE_JOIN_TIMEOUT": "-5"}, "ROPESCOPE_JOIN_TIMEOUT is '-5'"),
    ],
)
def test_variables_that_make_no_launch_are_refused(variables: dict[str, str | None], expected: str) -> None:
    given = {name: value for name, value in (LEFT | variables).items() if value is not None}
    with pytest.raises(InputError) as refused:
        launch_of(given)
    assert expected in str(refused.value)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_what_is_not_shared_waits_for_nobody(arguments: list[str]) -> None:
    code, output, _ = told([*COMMAND, *arguments])
    assert code == 0 and output.strip()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of a run of two processes, set in this one, the first of them."""
    variables = LEFT | {"MASTER_PORT": str(free_port()), "ROPESCOPE_JOIN_TIMEOUT": "3"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ropescope.run.launch._FIRST_WORD", 1.0)
    return variables


def said(capsys: pytest.CaptureFixture[str], measuring: list[str], within: float = 15) -> list[str]:
    """What a command that is refused says, within seconds."""
    began = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        cli.main(measuring)
    assert stopped.value.code == 2 and time.monotonic() - began < within
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("ropescope: ") for line in lines), lines
    return [line.removeprefix("ropescope: ") for line in lines]


@pytest.mark.usefixtures("left")
def test_a_command_of_one_process_ignores_the_launch(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "nonsense")
    cli.main(["inspect", str(saved)])


@pytest.mark.usefixtures("left")
def test_wrong_arguments_are_told_before_the_others_are_waited_for(
    measuring: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, [*measuring, "--norm-heads", "first"])[0].startswith("got head 'first'")


@pytest.mark.slow
@pytest.mark.usefixtures("left")
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RANK", "2", "RANK is 2 in the environment, but WORLD_SIZE is 2"),
        ("WORLD_SIZE", "", "WORLD_SIZE is '' in the environment"),
        (
            "MASTER_ADDR",
            "nowhere.invalid",
            "MASTER_ADDR is 'nowhere.invalid' in the environment, which does not",
        ),
        ("MASTER_ADDR", "a" * 70, "which does not resolve"),
    ],
)
@pytest.mark.parametrize("command", ["measure", "sweep", "tasks"])
def test_an_environment_that_cannot_be_is_told_in_one_line(
    command: str,
    name: str,
    value: str,
    expected: str,
    commands: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    (line,) = said(capsys, commands[command])
    assert expected in line


def test_a_port_in_use_is_told_in_one_line(
    left: dict[str, str], measuring: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = left["MASTER_PORT"]
    with socket.create_server(("127.0.0.1", int(port))):
        (line,) = said(capsys, measuring)
    assert f"MASTER_PORT is {port} in the environment, where this process, of rank 0, cannot listen" in line


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_do_not_come_are_waited_for_a_finite_time(
    rank: str,
    left: dict[str, str],
    measuring: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    here, place = 1 - int(rank), f"127.0.0.1:{left['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"
    waits, ended = said(capsys, measuring)
    assert waits.startswith(f"process {rank} waits for the others at {place}: {here} of 2 are here, ")
    assert ended.startswith(f"{here} of 2 processes came to {place} within 3 s; start all of them")


@pytest.mark.slow
def test_a_stranger_that_never_answers_ends_the_wait_too(
    left: dict[str, str], measuring: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with socket.create_server(("127.0.0.1", int(left["MASTER_PORT"]))):
        assert said(capsys, measuring)[-1].startswith("0 of 2 processes came to 127.0.0.1:")


@pytest.mark.slow
def test_an_address_of_another_machine_is_told(
    left: dict[str, str], measuring: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 serves where it is, but the address given leads elsewhere (here: nowhere)."""
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")
    # torch itself needs some ten seconds to find that out, more on a busy machine.
    monkeypatch.setenv("ROPESCOPE_JOIN_TIMEOUT", "60")
    *_, last = said(capsys, measuring, within=60)
    assert (
        f"cannot meet the other processes at 192.0.2.1:{left['MASTER_PORT']}" in last and "this process serves" in last
    )


def test_a_rank_given_twice_is_told(left: dict[str, str]) -> None:
    launch = Launch(1, 4, "127.0.0.1", int(left["MASTER_PORT"]), 20.0)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(_met, replace(launch, rank=rank)) for rank in (0, 1, 1)]
        errors = [each.exception(60) for each in found]
    assert all(isinstance(error, InputError | LaunchError) for error in errors)
    assert "RANK 1 is given to two processes of the run at 127.0.0.1" in " ".join(map(str, errors))


def test_all_that_come_meet(left: dict[str, str]) -> None:
    launch = Launch(0, 3, "127.0.0.1", int(left["MASTER_PORT"]), 60.0)
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(_met, [replace(launch, rank=rank) for rank in (2, 1, 0)]))
    stores[0].set("told", "yes")
    assert stores[2].get("told") == b"yes"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, "0"), (signal.SIGINT, "1")])
def test_a_signal_ends_a_process_that_waits(number: signal.Signals, rank: str, measuring: list[str]) -> None:
    with started([*COMMAND, *measuring], RANK=rank) as process:
        assert process.stderr is not None and "waits for the others" in process.stderr.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else 2)
    assert errors.count("\n") == 1 and "nothing was" in errors


@pytest.mark.slow
def test_processes_started_by_hand_come_together(measuring: list[str], tmp_path: Path) -> None:
    alike = LEFT | {"MASTER_PORT": str(free_port())}
    code = "import sys; from ropescope.cli import main; main(sys.argv[1:])"
    first, other = forked(code, *measuring, environments=[alike, alike | {"RANK": "1"}])
    assert (first.returncode, other.returncode) == (0, 0), first.stderr
    assert "result: " in first.stdout and (tmp_path / "result.nc").exists()


@pytest.mark.slow
def test_what_all_processes_find_wrong_is_told_once(measuring: list[str]) -> None:
    ran = run(torchrun(3, "-m", "ropescope", *measuring, "--norm-heads", "first"))
    lines = [line for line in ran.stderr.splitlines() if line.startswith("ropescope: ")]
    assert len(lines) == 1 and "got head 'first'" in lines[0]
    assert "exitcode  : 2" in ran.stderr


def test_processes_that_are_started_import_what_this_one_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ropescope").mkdir()
    (tmp_path / "ropescope" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = run([sys.executable, "-c", "import ropescope, launching; print(ropescope.__file__)"])
    assert Path(found.stdout.strip()).parent == tmp_path / "ropescope", found.stderr
    monkeypatch.delenv("PYTHONPATH")
    assert environment()["PYTHONPATH"] == str(SUPPORT)


def test_a_process_alone_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LEFT:
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with launched() as workers:
        assert workers == Workers() and signal.getsignal(signal.SIGTERM) is before
