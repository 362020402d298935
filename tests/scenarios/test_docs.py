"""What README and docs say exists: commands, options, names, keywords, variables; what is generated is fresh."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cyclopts import CycloptsError

import ropescope as rs
from checkout import ROOT
from ropescope.cli import app, main
from tiny import tiny_llama

DOCS = ROOT / "docs"
COMMAND = DOCS / "reference" / "command.md"
NOTEBOOK = DOCS / "notebooks" / "first-look.ipynb"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
# Options of other programs that pages name on their own.
OTHERS = {"--nproc-per-node", "--no-deps"}
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"(?:^|\s-m )ropescope ((?:[^'#\n]|'[^'\n]*')+)", re.MULTILINE)


def _fences(page: Path, *languages: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [body.replace("\\\n", " ") for language, body in _FENCE.findall(text) if language in languages]


def _calls() -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), call.strip())
        for page in PAGES
        for body in _fences(page, "", "bash")
        for call in _CALL.findall(body)
    ]


def _inline() -> list[tuple[str, str]]:
    """Code within sentences, pages that are generated aside."""
    return [
        (str(page.relative_to(ROOT)), code)
        for page in PAGES
        if page != COMMAND
        for code in re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text(encoding="utf-8")))
    ]


@functools.cache
def _options(command: str) -> set[str]:
    return {name for argument in app[command].assemble_argument_collection() for name in argument.names}


def _commands() -> list[str]:
    return [name for name in app if not name.startswith("-")]


def _unknown(code: str) -> set[str]:
    """Options of a command as a sentence names it, perhaps without its arguments, that the command does not have."""
    command, *words = shlex.split(code)
    if command.isupper():
        return set()
    return {word for word in words if word.startswith("--")} - _options(command) - {"--help"}


def _python() -> list[tuple[str, str]]:
    return [(str(page.relative_to(ROOT)), body) for page in PAGES for body in _fences(page, "python")]


def _keywords(code: str) -> list[tuple[str, set[str]]]:
    """Every call of a public name in a piece of Python, with the keywords it gives."""
    return [
        (node.func.attr, {keyword.arg for keyword in node.keywords if keyword.arg})
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "rs"
    ]


@pytest.mark.parametrize(("page", "call"), _calls())
def test_a_command_in_a_page_parses(page, call):
    try:
        app.parse_args(shlex.split(call), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        pytest.fail(f"{page}: ropescope {call}: {error}")


@pytest.mark.parametrize(
    "call", ["measure builtin --lenght 3", "mesure builtin", "sweep builtin", "measure builtin --count x"]
)
def test_a_command_that_does_not_exist_does_not_parse(call):
    with pytest.raises(CycloptsError):
        app.parse_args(shlex.split(call), exit_on_error=False, print_error=False)


def test_pages_hold_commands_of_every_kind():
    assert {call.split()[0] for _, call in _calls()} >= set(_commands()) - {"demo"}


def test_commands_and_options_within_sentences_exist():
    every = set().union(*map(_options, _commands()), OTHERS)
    for page, code in _inline():
        if match := re.search(r"(?:^|-m )ropescope (.+)", code):
            assert match[1].split()[0] in (*_commands(), "COMMAND"), f"{page}: {code}"
            assert not _unknown(match[1]), f"{page}: {code}"
        elif code.startswith("--"):
            assert code.split()[0] in every, f"{page}: {code}"
        elif code.split()[0] in _commands():
            assert not _unknown(code), f"{page}: {code}"


@pytest.mark.parametrize(("page", "code"), _python())
def test_python_in_a_page_names_what_is_public(page, code):
    for name in re.findall(r"\brs\.(\w+)", code):
        assert name in rs.__all__, f"{page}: rs.{name}"
    for name, keywords in _keywords(code):
        known = set(inspect.signature(getattr(rs, name)).parameters)
        assert keywords <= known, f"{page}: rs.{name} has no {keywords - known}"


def test_names_within_sentences_are_public():
    for page, code in _inline():
        for name in re.findall(r"^rs\.(\w+)", code):
            assert name in rs.__all__, f"{page}: {code}"


def test_files_of_the_repository_that_pages_name_exist():
    named = {
        (page, name)
        for page in PAGES
        for name in re.findall(r"\b(?:tests|benchmarks|docs)/[\w/]+\.py\b", page.read_text())
    }
    assert len({name for _, name in named}) >= 4
    missing = sorted(f"{page.name}: {name}" for page, name in named if not (ROOT / name).is_file())
    assert not missing


def test_targets_of_make_that_pages_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for _, code in _inline() for name in re.findall(r"^make ([a-z-]+)", code)}
    assert len(named) >= 5
    assert named <= targets


def test_the_reference_of_the_command_is_fresh():
    written = runpy.run_path(str(DOCS / "_build" / "command.py"))["reference"]()
    assert COMMAND.read_text(encoding="utf-8") == written, "run: python docs/_build/command.py"


def test_the_reference_of_python_has_every_public_name():
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: ropescope\.(\w+)$", page, re.MULTILINE)
    names = [name for name in rs.__all__ if not name.startswith("_")]
    assert sorted(documented) == sorted(names), "each public name stands once in docs/reference/python.md"


def test_the_reference_of_files_has_every_variable_of_a_result():
    windows = torch.randint(300, (1, 32), generator=torch.Generator().manual_seed(0))
    result = rs.measure(tiny_llama(torch.float32), windows, frame_length=16, hop_length=8)
    page = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    for group in ("query", "key", "rotary"):
        for name in result[group].data_vars:
            assert f"| `{name}` |" in page, f"docs/reference/files.md does not say what {name} is"


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (
        citation["version"] == re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    )
    families = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert families == ["Oka", "Hanafusa", "Hasegawa", "Nishida"]


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def _steps() -> list[tuple[str, list[str]]]:
    """The tutorial's commands, each with the lines it is said to print."""
    steps: list[tuple[str, list[str]]] = []
    for language, body in _FENCE.findall((DOCS / "tutorial.md").read_text(encoding="utf-8")):
        if language == "text":
            steps[-1][1].extend(body.splitlines())
        elif body.startswith("ropescope "):
            steps.append((body.replace("\\\n", " ").removeprefix("ropescope "), []))
    return steps


def _words(line: str) -> str:
    """A line without its numbers, which differ from machine to machine in their last digits."""
    return " ".join(re.sub(r"[+-]?\d[\d.,]*(?:e[+-]\d+|[kM%])?", "#", line).split())


@pytest.mark.models
def test_the_tutorial_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    steps = _steps()
    assert [call.split()[0] for call, _ in steps] == ["inspect", "measure", "figures", "select", "sweep", "report"]
    for call, said in steps:
        main(shlex.split(call))
        printed = [_words(line) for line in capsys.readouterr().out.splitlines()]
        for line in said:
            assert line == "..." or _words(line) in printed, f"ropescope {call} does not print: {line}"


@pytest.mark.models
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # The command, run in this process before, leaves a backend that shows nothing.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("bands at 0.5" in output.get("text", "") for output in printed)
    assert any("image/png" in output.get("data", {}) for output in printed)


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link_and_asks_for_nothing_from_outside(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed; `make docs` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert "<math" in reference
    assert not re.search(r":(?:func|math|class|meth):|\.\. math|``", reference)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]*src=\"?https?:[^>]*>", html), page
        assert not re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]*href=\"?https?:[^>]*>", html), (
            page
        )
