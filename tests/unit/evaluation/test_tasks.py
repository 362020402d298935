"""Tasks: the harness's own numbers, plain and changed on the same documents, and nothing lost on the way."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from architectures import LLAMA, state_of, tokens
from forking import forked
from harness_tasks import DATA, multiple_choice, write, write_tasks
from launching import run_job
from refusals import refusal
from ropescope.base.errors import InputError, MissingExtraError, ResultError, TaskError
from ropescope.cli import main
from ropescope.compression.planning import plan_keys
from ropescope.compression.thinning import thin_keys
from ropescope.evaluation.tasks import harness as harness_module
from ropescope.evaluation.tasks.dataset import TASKS, labelled, to_json
from ropescope.evaluation.tasks.evaluating import evaluate_tasks
from ropescope.evaluation.tasks.harness import Harness, TaskProtocol
from ropescope.evaluation.tasks.scores import Evaluated, Score
from ropescope.evaluation.tasks.table import compared, tasks_table
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.measure import measure
from ropescope.measurement.results import save
from ropescope.model.access import undisturbed
from ropescope.model.loading import load_model
from ropescope.model.windows import token_windows
from ropescope.run.workers import Workers
from worker_jobs import save_models_with_text

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.usefixtures("one_thread")]

ANIMALS = ["a cat", "a dog", "the model", "of models"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of forty documents, a group of the first two, and a task whose data set is nowhere."""
    return with_tasks(tmp_path_factory.mktemp("harness"))


def with_tasks(folder: Path) -> Path:
    documents = folder / "documents.jsonl"
    rows = [{"query": f"{n} is what?", "choices": ANIMALS, "gold": n % 4} for n in range(40)]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {"doc_to_text": "{{query}}", "doc_to_target": "{{gold}}", "doc_to_choice": "choices"}
    for name in ("first", "second"):
        write(folder, multiple_choice(name, documents, **texts))
    acc = [{"metric": "acc", "weight_by_size": True}]
    write(folder, {"group": "both", "task": ["first", "second"], "aggregate_metric_list": acc})
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{query}}"}
    words = [{"metric": name} for name in ("word_perplexity", "bits_per_byte")]
    write(folder, multiple_choice("rolling", documents, **rolling, metric_list=words))
    nowhere = multiple_choice("nowhere", documents, **texts) | {"dataset_path": "nobody/nothing", "dataset_kwargs": {}}
    write(folder, nowhere)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_index() -> Any:
    """The harness takes seconds to index its tasks; the tests' own folder is quick."""
    from lm_eval.tasks import TaskManager

    own = cache(
        lambda path: TaskManager(include_path=None if path is None else str(path), include_defaults=path is None)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness_module, "task_manager", lambda path: own(path))
        yield


@pytest.fixture(scope="module")
def loaded(saved: Path) -> Any:
    return load_model(saved, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def result(loaded: Any) -> xr.DataTree:
    model, tokenizer = loaded
    windows = token_windows(tokenizer, "builtin", length=64, count=2)
    return measure(model, windows, frame_length=32, hop_length=16)


@pytest.fixture(scope="module")
def masks(result: xr.DataTree) -> dict[str, Any]:
    return {"all": select(result, "pair >= 0"), "slow": select(result, "pair >= 2"), "none": select(result, "pair < 0")}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that the harness is asked to run, in order."""
    names: list[str] = []
    own = Harness.evaluate

    def counting(self: Harness, task: str, progress: bool = False) -> Evaluated:
        names.append(task)
        return own(self, task, progress)

    monkeypatch.setattr(Harness, "evaluate", counting)
    return names


def run(loaded: Any, folder: Path, masks: Any, tasks: Any = ("first",), **options: Any) -> xr.Dataset:
    protocol = TaskProtocol(limit=12, include_path=folder, batch_size=4)
    return evaluate_tasks(*loaded, list(tasks), masks, **{"alpha": 0.0, "protocol": protocol, **options})


def test_thin_keys_are_an_arm_whose_answers_are_those_of_the_harness_inside_them(
    loaded: Any, folder: Path, masks: Any, tmp_path: Path
) -> None:
    model, tokenizer = loaded
    plan = plan_keys(model, token_windows(tokenizer, "builtin", length=64, count=8), keep=0.6, metric="query", sinks=2)
    data = run(loaded, folder, {"thin": plan, "slow": masks["slow"]}, ["rolling"], path=tmp_path / "tasks.nc")
    assert data["arm"].values.tolist() == ["plain", "slow at 0", "thin"]
    with thin_keys(model, plan):
        inside = run(loaded, folder, masks["none"], ["rolling"])
    np.testing.assert_array_equal(data["outcome"].sel(arm="thin"), inside["outcome"].sel(arm="plain"))
    np.testing.assert_array_equal(data["value"].sel(arm="thin"), inside["value"].sel(arm="plain"))
    assert (data["outcome"].sel(arm="thin") != data["outcome"].sel(arm="plain")).all(), "the keys are thinned"
    rows = [row for row in compared(data) if row.selection == "thin"]
    assert rows and np.isnan(rows[0].alpha)
    assert re.search(r"thin +- ", tasks_table(data))
    assert json.loads(tasks_table(data, format="json"))["scores"][-1]["alpha"] is None
    with pytest.raises(InputError, match="called 'plain', which the model as it stands is"):
        run(loaded, folder, {"plain": plan})
    other = plan_keys(LLAMA.shared(), tokens(8, 48), keep=0.6, metric="query")
    with pytest.raises(InputError, match="made for other weights"):
        run(loaded, folder, other)


def planted(*scores: tuple[list[float], list[float]], higher: bool | None = True, **changes: Any) -> xr.Dataset:
    """A dataset of tasks with these outcomes, plain and changed."""
    arms = {"plain": ("plain", 1.0), "bands at 0": ("bands", 0.0)}
    cells: dict[str, list[Score]] = {arm: [] for arm in arms}
    for place, sides in enumerate(scores):
        for arm, outcomes in zip(arms, sides, strict=True):
            given = {"value": float(np.mean(outcomes)), "outcomes": tuple((value, 1.0) for value in outcomes)} | changes
            facts = {"stderr": 0.01, "members": (), "shots": 0, "version": "1", "documents": (len(outcomes),) * 2}
            cells[arm].append(Score(f"task{place}", "acc", "none", higher_is_better=higher, **facts, **given))
    return labelled(arms, cells, {"failed": {}})


@pytest.mark.slow
def test_the_plain_column_is_what_the_harness_itself_prints(
    loaded: Any, saved: Path, folder: Path, masks: Any, tmp_path: Path
) -> None:
    arguments = {"model": "hf", "device": "cpu", "batch_size": 4, "limit": 12, "tasks": "both,rolling"}
    arguments |= {"model_args": f"pretrained={saved},dtype=float32", "include_path": folder, "output_path": tmp_path}
    command = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    (ran,) = forked("import runpy; runpy.run_module('lm_eval', run_name='__main__')", *command)
    assert ran.returncode == 0, ran.stderr
    written = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    theirs = {**written["results"], **written["groups"]}
    data = run(loaded, folder, masks["all"], ["both", "rolling"])
    plain = data.sel(arm="plain")
    assert {str(task) for task in data.task.values} == {"first", "second", "both", "rolling"}
    for place in range(data.sizes["score"]):
        task, metric, filter = (str(data[name].values[place]) for name in ("task", "metric", "filter"))
        own = theirs[task]
        assert float(plain["value"][place]) == own[f"{metric},{filter}"]
        stderr = own[f"{metric}_stderr,{filter}"]
        assert np.isnan(plain["stderr"][place]) if stderr == "N/A" else float(plain["stderr"][place]) == stderr
    assert f"|{theirs['both']['acc,none']:.4f}".rstrip("0") + "|" in ran.stdout
    both = next(line for line in tasks_table(data).splitlines() if line.startswith("both"))
    assert f"{theirs['both']['acc,none']:.4f} ± {theirs['both']['acc_stderr,none']:.4f}" in both


def test_at_alpha_one_the_harness_sees_the_plain_model(loaded: Any, folder: Path, masks: Any) -> None:
    model, _ = loaded
    harness = Harness(*loaded, TaskProtocol(limit=12, include_path=folder))
    with undisturbed(model):
        plain = harness.evaluate("rolling")
    with undisturbed(model), weighted_rope(model, masks["all"], 1.0):
        assert to_json(harness.evaluate("rolling")) == to_json(plain)
    with undisturbed(model), weighted_rope(model, masks["all"], 0.0):
        weighted = harness.evaluate("rolling")
    assert weighted.documents == plain.documents
    changes = [abs(a[0] - b[0]) for a, b in zip(plain.scores[0].outcomes, weighted.scores[0].outcomes, strict=True)]
    assert min(changes) > 1e-5


@pytest.mark.models
def test_bands_turned_off_ruin_a_real_model(builtin: Any, tmp_path: Path) -> None:
    if not DATA.exists():
        pytest.skip(f"HellaSwag and TruthfulQA are not at {DATA}")
    write_tasks(tmp_path, DATA)
    model, tokenizer = builtin
    measured = measure(model, token_windows(tokenizer, "builtin", length=1024, count=1))
    protocol = TaskProtocol(limit=3, include_path=tmp_path, batch_size=8)
    data = evaluate_tasks(*builtin, ["truthfulqa_mc2"], {"bands": select(measured, "bands")}, 0.0, protocol=protocol)
    outcomes = data["outcome"].values
    assert np.abs(outcomes[1] - outcomes[0]).mean() > 0.05


def test_outside_a_repository_git_does_not_complain(
    loaded: Any, folder: Path, masks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    run(loaded, folder, masks["all"])
    assert capfd.readouterr().err == ""


def test_the_harness_does_not_list_the_packages_of_the_machine_after_every_task(
    loaded: Any, folder: Path, masks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listing(*_: Any) -> None:
        raise AssertionError("packages are listed")

    monkeypatch.setattr("lm_eval.evaluator.add_env_info", listing)
    run(loaded, folder, masks["all"])
    assert sys.modules["lm_eval.evaluator"].add_env_info is listing


def test_a_run_leaves_model_and_tokenizer_as_they_were(loaded: Any, folder: Path, masks: Any) -> None:
    model, tokenizer = loaded
    before, padding = state_of(model), tokenizer.pad_token
    run(loaded, folder, masks["all"])
    assert state_of(model) == before
    assert tokenizer.pad_token == padding


def test_the_dataset_is_labelled(loaded: Any, folder: Path, masks: Any) -> None:
    data = run(loaded, folder, {"all": masks["all"], "slow": masks["slow"]}, ["both"], alpha=(0.0, 0.5))
    assert data.arm.values.tolist() == ["plain", "all at 0", "all at 0.5", "slow at 0", "slow at 0.5"]
    assert data.selection.values.tolist() == ["plain", "all", "all", "slow", "slow"]
    assert data.alpha.values.tolist() == [1, 0, 0.5, 0, 0.5]
    assert data.task.values.tolist() == ["first", "second", "both"]
    assert data.documents.values.tolist() == [12, 12, 24]
    assert data.original.values.tolist() == [40, 40, 80]
    assert data.direction.values.tolist() == [1, 1, 1]
    assert data.members.values.tolist() == ["", "", "first second"]
    assert data.outcome.shape == (5, 24)
    means = data.outcome.groupby(data.item_score).mean()
    np.testing.assert_allclose(means.T, data.value[:, :2].T)
    facts = json.loads(data.attrs["provenance"])
    assert facts["protocol"]["limit"] == 12 and facts["tasks"] == ["both"] and facts["failed"] == {}
    assert facts["versions"]["lm_eval"] and facts["selections"]["slow"]["pairs"]["query"] > 0


def test_few_shots_seed_and_settings_reach_the_harness(loaded: Any, folder: Path, masks: Any, tmp_path: Path) -> None:
    settings = {"system_instruction": "Be kind."}
    protocol = TaskProtocol(limit=3, include_path=folder, num_fewshot=2, seed=7, settings=settings)
    data = run(loaded, folder, {"all": masks["all"]}, ["first"], protocol=protocol, samples=tmp_path)
    assert data.shots.values.tolist() == [2]
    logs = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert set(logs) == {"samples_first_plain.jsonl", "samples_first_all-at-0.jsonl"}
    rows = [json.loads(line) for line in logs["samples_first_plain.jsonl"]]
    prompt = rows[0]["arguments"][0][0]
    assert prompt.startswith("Be kind.") and prompt.count("is what?") == 3
    other = {
        "protocol": TaskProtocol(limit=3, include_path=folder, num_fewshot=2, seed=8),
        "samples": tmp_path / "other",
    }
    run(loaded, folder, {"all": masks["all"]}, ["first"], **other)
    redrawn = json.loads((tmp_path / "other" / "samples_first_plain.jsonl").read_text().splitlines()[0])
    assert redrawn["arguments"][0][0].removeprefix("Be kind.").strip() != prompt.removeprefix("Be kind.").strip()


def test_arms_share_the_plain_run_and_equal_arms_run_once(
    loaded: Any, folder: Path, masks: Any, asked: list[str]
) -> None:
    data = run(loaded, folder, {**masks, "again": masks["slow"]}, alpha=(0.0, 1.0))
    assert asked == ["first"] * 3
    np.testing.assert_array_equal(data.outcome.sel(arm="none at 0"), data.outcome.sel(arm="plain"))
    np.testing.assert_array_equal(data.outcome.sel(arm="all at 1"), data.outcome.sel(arm="plain"))


class TestNothingIsLost:
    def test_an_interrupted_run_goes_on_and_ends_with_the_same_file(
        self, loaded: Any, folder: Path, masks: Any, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, path = tmp_path / "whole.nc", tmp_path / "tasks.nc"
        run(loaded, folder, masks["all"], ["first", "rolling"], path=whole)
        own = Harness.evaluate

        def interrupted(self: Harness, task: str, progress: bool = False) -> Evaluated:
            if len(asked) == 3 + 4:
                raise KeyboardInterrupt
            return own(self, task, progress)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Harness, "evaluate", interrupted)
            run(loaded, folder, masks["all"], ["first", "rolling"], path=path)
        assert not path.exists() and (tmp_path / "tasks.nc.partial").is_dir()
        run(loaded, folder, masks["all"], ["first", "rolling"], path=path)
        assert len(asked) == 4 + 4
        assert path.read_bytes() == whole.read_bytes()
        assert not (tmp_path / "tasks.nc.partial").exists()
        run(loaded, folder, masks["all"], ["first", "rolling"], path=path)
        assert len(asked) == 4 + 4

    def test_a_task_that_fails_does_not_lose_the_others(
        self, loaded: Any, folder: Path, masks: Any, asked: list[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "tasks.nc"
        data = run(loaded, folder, masks["all"], ["nowhere", "first"], path=path)
        assert data.task.values.tolist() == ["first"]
        failed = json.loads(TASKS.load(path).attrs["provenance"])["failed"]
        assert "nobody/nothing" in failed["nowhere"] and "give its folder as include_path" in failed["nowhere"]
        assert len(asked) == 4
        run(loaded, folder, masks["all"], ["nowhere", "first"], path=path)
        assert asked[4:] == ["nowhere"] * 2

    def test_a_task_that_is_mended_does_not_lose_the_others(
        self, loaded: Any, folder: Path, masks: Any, asked: list[str], tmp_path: Path
    ) -> None:
        own, path = tmp_path / "own", tmp_path / "tasks.nc"
        own.mkdir()
        texts = {"doc_to_text": "{{query}}", "doc_to_target": "{{gold}}", "doc_to_choice": "choices"}
        for name in ("good", "bad"):
            write(own, multiple_choice(name, folder / f"{name}.jsonl", **texts))
        (folder / "good.jsonl").write_text((folder / "documents.jsonl").read_text())
        fresh = {"protocol": TaskProtocol(limit=5, include_path=own)}
        first = run(loaded, own, masks["all"], ["good", "bad"], path=path, **fresh)
        assert first.task.values.tolist() == ["good"]
        (folder / "bad.jsonl").write_text((folder / "documents.jsonl").read_text())
        asked.clear()
        second = run(loaded, own, masks["all"], ["good", "bad"], path=path, **fresh)
        assert asked == ["bad", "bad"]
        assert second.task.values.tolist() == ["good", "bad"]

    def test_cells_are_known_by_the_definition_of_their_task(self, loaded: Any, folder: Path) -> None:
        harness = Harness(*loaded, TaskProtocol(include_path=folder))
        index = harness.manager.task_index
        before = {name: harness.definition(name) for name in ("first", "second", "both")}
        assert len(set(before.values())) == 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(index["first"].cfg, "doc_to_text", "{{query}}?")
            after = {name: harness.definition(name) for name in before}
        assert {name for name in before if before[name] != after[name]} == {"first", "both"}

    def test_a_journal_that_another_process_does_not_see(
        self, loaded: Any, folder: Path, masks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Workers, "divided", lambda self, names, finished: (names, []))
        with pytest.raises(ResultError, match="is not there for every process; write to a folder that all share"):
            run(loaded, folder, masks["all"], path=tmp_path / "tasks.nc")

    def test_another_run_is_not_overwritten(self, loaded: Any, folder: Path, masks: Any, tmp_path: Path) -> None:
        path = tmp_path / "tasks.nc"
        run(loaded, folder, masks["all"], path=path)
        before = path.read_bytes()
        with pytest.raises(ResultError, match="allow overwriting"):
            run(loaded, folder, masks["slow"], path=path)
        assert path.read_bytes() == before
        run(loaded, folder, masks["slow"], path=path, overwrite=True)
        assert path.read_bytes() != before


class TestBadInput:
    def test_without_the_harness(self, loaded: Any, masks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=re.escape("not installed here: pip install 'ropescope[tasks]'")):
            evaluate_tasks(*loaded, ["hellaswag"], masks["all"])

    def test_an_unknown_task_is_met_by_near_names(self, loaded: Any, folder: Path, masks: Any) -> None:
        with pytest.raises(TaskError, match=r"no task 'frist': did you mean first\?"):
            run(loaded, folder, masks["all"], ["first", "frist"])

    def test_every_task_fails(self, loaded: Any, folder: Path, masks: Any) -> None:
        with pytest.raises(TaskError, match=r"nobody/nothing.*data set could not be reached"):
            run(loaded, folder, masks["all"], ["nowhere"])

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"tasks": []}, "got no tasks"),
            ({"masks": {}}, "got no masks"),
            ({"masks": {"bands": 3}}, "selection 'bands' is a int; give PairMasks by name"),
            ({"alpha": 1.5}, "alpha got 1.5"),
            ({"protocol": TaskProtocol(settings={"limits": 3})}, "settings got 'limits'.*did you mean 'limit'"),
            ({"protocol": TaskProtocol(include_path="nowhere")}, "include_path got nowhere, which is no folder"),
            ({"intervention": lambda *_: None}, "give a function with a name"),
        ],
    )
    def test_bad_input(self, loaded: Any, folder: Path, masks: Any, options: Any, text: str) -> None:
        with pytest.raises(InputError, match=text):
            run(loaded, folder, **{"masks": masks["all"], **options})

    def test_a_mask_of_another_model(self, loaded: Any, folder: Path, result: xr.DataTree) -> None:
        other = select(result.isel(layer=[0]), "pair >= 0")
        with pytest.raises(InputError, match="select on this model"):
            run(loaded, folder, other)


class TestTable:
    def test_verdicts_follow_the_interval(self) -> None:
        right, wrong = [1.0] * 60, [0.0] * 60
        mixed = [1.0, 0.0] * 30
        rows = compared(planted((right, wrong), (wrong, right), (mixed, mixed)))
        assert [row.verdict for row in rows] == ["worse", "better", "indistinguishable"]
        assert rows[2].difference is not None and rows[2].difference.detectable > 0.05
        assert [row.verdict for row in compared(planted((right, wrong), higher=False))] == ["better"]
        assert [row.verdict for row in compared(planted((right, wrong), higher=None))] == ["lower"]

    def test_an_interval_without_a_p_value_to_match_is_unclear(self) -> None:
        lost = [0.0] * 5 + [1.0] * 95
        row = compared(planted(([1.0] * 100, lost)))[0]
        assert row.difference is not None
        assert row.difference.high < 0 and row.difference.p > 0.05
        assert row.verdict == "unclear"

    def test_other_means_are_bootstrapped(self) -> None:
        random = np.random.default_rng(0)
        plain = random.uniform(0.2, 0.8, 80)
        row = compared(planted((list(plain), list(plain - 0.1))))[0]
        assert row.difference is not None and row.verdict == "worse"
        np.testing.assert_allclose((row.difference.value, row.difference.low, row.difference.high), -0.1, atol=1e-9)

    def test_a_score_that_its_documents_do_not_give_is_not_tested(self) -> None:
        row = compared(planted(([1.0, 0.0, 1.0], [0.0, 0.0, 1.0]), value=0.123))[0]
        assert row.difference is None and row.verdict == "not tested"
        assert "not tested" in tasks_table(planted(([1.0, 0.0, 1.0], [0.0, 0.0, 1.0]), value=0.123))

    def test_perplexities_and_groups_are_recognised(self, loaded: Any, folder: Path, masks: Any) -> None:
        data = run(loaded, folder, masks["all"], ["both", "rolling"])
        rows = {(row.task, row.metric): row for row in compared(data, resamples=200)}
        assert set(rows) == {
            *(("both", "acc"), ("first", "acc"), ("second", "acc")),
            *(("rolling", "word_perplexity"), ("rolling", "bits_per_byte")),
        }
        for row in rows.values():
            assert row.difference is not None
            assert row.difference.value == pytest.approx(row.changed - row.plain)
        assert rows["rolling", "bits_per_byte"].better == -1

    def test_formats_agree_and_members_of_groups_stay_out_of_the_text(
        self, loaded: Any, folder: Path, masks: Any
    ) -> None:
        data = run(loaded, folder, masks["all"], ["both"])
        text, markdown = tasks_table(data).splitlines(), tasks_table(data, format="markdown").splitlines()
        rows = list(csv.DictReader(io.StringIO(tasks_table(data, format="csv"))))
        content = json.loads(tasks_table(data, format="json"))
        assert len(text) == 2 and text[1].startswith("both") and len(markdown) == 3
        assert [row["task"] for row in rows] == ["first", "second", "both"]
        assert [score["task"] for score in content["scores"]] == ["first", "second", "both"]
        assert content["provenance"]["model"]["architecture"] == "LlamaForCausalLM"
        for row, score in zip(rows, content["scores"], strict=True):
            assert float(row["changed"]) == score["changed"] and float(row["low"]) == score["low"]
        assert (
            f"{content['scores'][2]['plain']:.4f} ±" in text[1]
            and f"{content['scores'][2]['plain']:.4f} ±" in markdown[2]
        )

    def test_unknown_format(self) -> None:
        with pytest.raises(InputError, match="did you mean 'json'"):
            tasks_table(planted(([1.0], [0.0])), format="jsn")  # type: ignore[arg-type]


class TestFile:
    def test_other_files_are_refused(self, tmp_path: Path, result: xr.DataTree) -> None:
        with pytest.raises(ResultError, match="it does not exist"):
            TASKS.load(tmp_path / "no.nc")
        with pytest.raises(ResultError, match="is not a file of tasks"):
            TASKS.load(save(result, tmp_path / "result.nc"))
        (tmp_path / "text.nc").write_text("text")
        with pytest.raises(ResultError, match="damaged or cut short"):
            TASKS.load(tmp_path / "text.nc")


@pytest.mark.slow
def test_processes_that_share_tasks_equal_one(tmp_path: Path) -> None:
    save_models_with_text(with_tasks(tmp_path))
    run_job(2, "tasks", tmp_path)


@pytest.mark.slow
def test_the_report_shows_tasks(result: xr.DataTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = planted(([1.0, 0.0] * 30, [0.0] * 60))
    protocol = {"lm_eval": "0", "limit": 60.0}
    data.attrs["provenance"] = json.dumps({"protocol": protocol, "failed": {"other": "task <other> failed"}})
    TASKS.save(data, tmp_path / "tasks.nc")
    files = [str(save(result, tmp_path / "result.nc")), str(tmp_path / "tasks.nc")]
    main(["report", *files, "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert "Downstream tasks: tasks" in page and "limit 60" in page and "task &lt;other&gt; failed" in page
    assert "0.5000 ± 0.0100" in page and "worse" in page
    assert "report: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_prints_the_table_and_writes_it_in_every_format(
    saved: Path, folder: Path, result: xr.DataTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured, output = save(result, tmp_path / "result.nc"), tmp_path / "tasks.nc"
    command = ["tasks", str(saved), str(measured), "--select", "pair >= 0", "--alpha", "0", "0.5", "--limit", "6"]
    command += ["--include-path", str(folder), "--output", str(output), "--device", "cpu"]
    main([*command, "--tasks", "first,second"])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("pair >= 0") == 4
    for extension in ("nc", "md", "csv", "json"):
        assert output.with_suffix(f".{extension}").exists()
    with pytest.raises(SystemExit, match="1"):
        main([*command, "--tasks", "first,nowhere", "--overwrite"])
    printed = capsys.readouterr()
    assert "first" in printed.out and "ropescope: task nowhere failed: " in printed.err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--tasks", "frist"])
    assert "did you mean first" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs_on_plans_with_or_without_selections(
    saved: Path, folder: Path, result: xr.DataTree, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = token_windows(loaded[1], "builtin", length=64, count=4)
    plans = {keep: plan_keys(loaded[0], windows, keep=keep, sinks=2) for keep in (0.5, 1.0)}
    files = [str(plan.save(tmp_path / f"{keep}.safetensors")) for keep, plan in plans.items()]
    asked = ["--tasks", "first", "--limit", "6", "--include-path", str(folder), "--device", "cpu"]
    main(["tasks", str(saved), "--plan", *files, *asked, "--output", str(tmp_path / "plans.nc")])
    printed = capsys.readouterr().out
    assert printed.count("latent") == 2 and "table1" not in printed
    outcome = TASKS.load(tmp_path / "plans.nc")["outcome"]
    named = {f"latent {keep:g}": plan for keep, plan in plans.items()}
    expected = evaluate_tasks(*loaded, ["first"], named, protocol=TaskProtocol(limit=6, include_path=folder))
    np.testing.assert_array_equal(outcome, expected["outcome"])
    np.testing.assert_array_equal(outcome.sel(arm="latent 1"), outcome.sel(arm="plain"))
    measured = str(save(result, tmp_path / "result.nc"))
    both = ["tasks", str(saved), measured, "--select", "pair >= 0", "--plan", files[0], *asked]
    main([*both, "--output", str(tmp_path / "both.nc")])
    arms = TASKS.load(tmp_path / "both.nc")["arm"]
    assert arms.values.tolist() == ["plain", "pair >= 0 at 0.1", "latent 0.5"]


def test_the_command_asks_for_what_changes_the_model(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ([], ["--select", "bands"]):
        line = refusal(capsys, "tasks", str(saved), *given, "--tasks", "hellaswag")
        assert "got no RESULT to select pairs on" in line and "--plan" in line
    (tmp_path / "no.safetensors").write_bytes(b"")
    line = refusal(capsys, "tasks", str(saved), "--plan", str(tmp_path / "no.safetensors"), "--tasks", "hellaswag")
    assert "no.safetensors" in line
