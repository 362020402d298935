"""The command as a person types it: what it prints and writes, and one clear line with exit code 2 for bad input."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import xarray as xr

import ropescope as rs
from launching import heed_interrupts
from refusals import refusal
from ropescope import cli
from ropescope.cli.measure import _tell
from synthetic import synthetic_result
from tiny import byte_level_tokenizer, tiny_llama

SHORT = ["--length", "128", "--frame-length", "64", "--hop-length", "32", "--count", "2"]
COMMANDS = (
    *("inspect", "measure", "importance", "show", "figures", "select", "sweep", "tasks", "compare", "report", "bake"),
    "demo",
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the model of the models\n" * 200)
    return path


@pytest.fixture
def measured(saved: Path, text: Path, tmp_path: Path) -> list[str]:
    """Arguments that measure the tiny model on a small text into result.nc."""
    return ["measure", str(saved), "--corpus", str(text), *SHORT, "--output", str(tmp_path / "result.nc")]


def replaced(arguments: list[str], option: str, value: str) -> list[str]:
    """The arguments with one option given another value."""
    if option not in arguments:
        return [*arguments, option, value]
    place = arguments.index(option) + 1
    return [*arguments[:place], value, *arguments[place + 1 :]]


def test_inspect_prints_the_rotary_card(saved, capsys):
    cli.main(["inspect", str(saved)])
    output = capsys.readouterr().out
    assert "LlamaForCausalLM, 2 attention layers, float32" in output
    assert "layers 0-1: 4 query / 2 key heads of 8, half-split[0:8], 4 pairs, wavelength 6.28 to" in output


def test_inspect_needs_no_tokenizer(saved, tmp_path, capsys):
    folder = shutil.copytree(saved, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    cli.main(["inspect", str(folder)])
    assert capsys.readouterr().out.startswith(f"{folder}: LlamaForCausalLM, 2 attention layers")


def test_measure_writes_a_result_with_provenance_and_prints_a_summary(measured, saved, tmp_path, capsys):
    cli.main(measured)
    output = capsys.readouterr().out
    result = rs.load(tmp_path / "result.nc")
    assert result["query"].spectrum_fe.sizes == {"sequence": 2, "layer": 2, "head": 4, "pair": 4}
    kept = list(zip(result["query"].kept_layer.values.tolist(), result["query"].kept_head.values.tolist(), strict=True))
    assert kept == sorted({(0, 0), (1, 0)} | set(rs.default_heads(result)))
    for word in ("bands", "outliers", "periodic", "undefined", "strongest bands", "wavelength", "result.nc"):
        assert word in output
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "result.nc"}


def test_measure_names_its_output_after_model_and_corpus(saved, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["measure", str(saved), "--corpus", str(text), *SHORT, "--norm-heads", "none"])
    assert "norm" not in rs.load(tmp_path / "tiny-text-128.nc")["query"].data_vars


def test_measure_does_not_replace_a_result_unless_told(measured, tmp_path, capsys):
    (tmp_path / "result.nc").write_text("precious")
    assert "result.nc: it exists" in refusal(capsys, *measured)
    assert (tmp_path / "result.nc").read_text() == "precious"
    cli.main([*measured, "--overwrite"])
    rs.load(tmp_path / "result.nc")


@pytest.mark.slow
@pytest.mark.parametrize("extension", ["png", "svg", "pdf"])
def test_figures_draws_panel_and_overview_of_both_streams(extension, tmp_path, capsys):
    rs.save(synthetic_result(), tmp_path / "result.nc")
    folder = tmp_path / "new" / "figures"
    cli.main(["figures", str(tmp_path / "result.nc"), "--format", extension, "--output-dir", str(folder)])
    names = {f"result-{stream}-{name}.{extension}" for stream in ("query", "key") for name in ("panel", "overview")}
    assert {path.name for path in folder.iterdir()} == names
    assert {Path(line).name for line in capsys.readouterr().out.split()} == names
    if extension == "png":
        assert all(matplotlib.image.imread(folder / name).std() > 0 for name in names)
    if extension == "pdf":
        contents = [(folder / name).read_bytes() for name in names]
        assert all(b"/FontFile2" in content and b"/Subtype /Type3" not in content for content in contents)


@pytest.mark.slow
def test_figures_of_chosen_heads(tmp_path):
    rs.save(synthetic_result(), tmp_path / "result.nc")
    arguments = ["figures", str(tmp_path / "result.nc"), "--heads", "1:0", "2:1", "--stream", "query"]
    cli.main([*arguments, "--output-dir", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "result-query-panel.png",
        "result-query-overview.png",
    }


@pytest.mark.slow
def test_keys_are_drawn_for_the_key_head_that_a_query_head_attends_to(tmp_path):
    rs.save(synthetic_result(kv_heads=2, heads=4), tmp_path / "result.nc")
    cli.main(["figures", str(tmp_path / "result.nc"), "--heads", "1:3", "--output-dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "result-key-panel.png").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--length", "32"], "a signal of 32 positions is shorter than one frame of 64; use at least 64 tokens"),
        (["--length", "100000"], "0 windows, but 2 windows of 100000 tokens asked for"),
        (["--window", "han"], "unknown analysis window 'han'; did you mean 'hann'"),
        (["--hop-length", "0"], "hop_length got 0"),
        (["--batch-size", "0"], "batch_size got 0"),
        (["--norm-heads", "7:0"], "no such head: layer 7, head 0; layers are 0 to 1"),
        (["--norm-heads", "0:9"], "no such head: layer 0, head 9; layers are 0 to 1, query heads 0 to 3"),
        (["--norm-heads", "first"], "got head 'first'; a head reads LAYER:HEAD"),
        (["--split", "train"], "has no splits"),
        (["--dtype", "float12"], "unknown dtype 'float12'"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available"),
        (["--lenght", "64"], "Unknown option: --lenght"),
        (["--length", "many"], 'unable to convert "many" into int'),
    ],
)
def test_bad_options_of_measure(arguments, expected, measured, tmp_path, capsys):
    assert expected in refusal(capsys, *replaced(measured, *arguments))
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt"}


def test_bad_texts(saved, tmp_path, capsys):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    (tmp_path / "rows.jsonl").write_text('{"body": "the model"}\n' * 100)
    told = {
        name: refusal(capsys, "measure", str(saved), "--corpus", str(tmp_path / name), *SHORT, "-o", "unwritten.nc")
        for name in ("empty.txt", "latin.txt", "rows.jsonl", "none.txt")
    }
    assert "is empty" in told["empty.txt"]
    assert "is not UTF-8 text (byte 3)" in told["latin.txt"]
    assert "has no column 'text'" in told["rows.jsonl"]
    assert "no such file" in told["none.txt"]
    assert not Path("unwritten.nc").exists()


def test_measure_names_the_few_pairs_that_stand_out(tmp_path, capsys):
    result = synthetic_result()
    result["query"]["spectrum_fe"][:, 0, 0, 2:9] = 0.5
    _tell(result, tmp_path / "r.nc")
    (table,) = [part for part in capsys.readouterr().out.split("\n\n") if "spectrum outliers" in part]
    title, _, *rows = table.splitlines()
    assert title.endswith("the 3 furthest") and len(rows) == 3


def test_measure_names_its_file_as_it_was_given(saved, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["measure", str(saved), "--corpus", str(text), *SHORT, "--output", "r.nc"])
    assert capsys.readouterr().out.endswith(
        "result: r.nc\nfigures: ropescope figures r.nc\nmore pairs: ropescope show r.nc\n"
    )


@pytest.mark.slow
def test_a_sweep_names_its_file_as_it_was_given(sweeping, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main([*sweeping[:-1], "here.nc"])
    assert "\nsweep: here.nc\n" in capsys.readouterr().out


def test_bad_models(text, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    (tmp_path / "wrong.gguf").write_bytes(b"not a model")
    rest = ["--corpus", str(text), *SHORT, "-o", str(tmp_path / "r.nc")]
    assert "cannot be reached" in refusal(capsys, "measure", "nobody/no-such-model", *rest)
    assert "has no config.json" in refusal(capsys, "measure", str(tmp_path / "bare"), *rest)
    assert "is not a GGUF file" in refusal(capsys, "measure", str(tmp_path / "wrong.gguf"), *rest)


def test_weights_that_are_not_finite_are_named(text, tmp_path, capsys):
    model = tiny_llama()
    model.model.layers[1].self_attn.k_proj.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    byte_level_tokenizer().save_pretrained(tmp_path / "nan")
    capsys.readouterr()
    arguments = ["measure", str(tmp_path / "nan"), "--corpus", str(text), *SHORT, "-o", str(tmp_path / "r.nc")]
    assert "key of layer 1, head 0 is not finite at position 0" in refusal(capsys, *arguments)
    assert not (tmp_path / "r.nc").exists()


def test_outputs_that_cannot_be_written_are_refused_before_the_model_is_loaded(measured, text, capsys):
    assert "is not a folder" in refusal(capsys, *measured[:-1], str(text / "result.nc"))


def test_bad_inputs_of_figures(tmp_path, capsys):
    good = tmp_path / "result.nc"
    rs.save(synthetic_result(), good)
    (tmp_path / "cut.nc").write_bytes(good.read_bytes()[:5000])
    assert "no result file" in refusal(capsys, "figures")
    assert "does not exist" in refusal(capsys, "figures", str(tmp_path / "none.nc"))
    assert "damaged or cut short" in refusal(capsys, "figures", str(tmp_path / "cut.nc"))
    assert "got layer 99" in refusal(capsys, "figures", str(good), "--heads", "99:0", "--output-dir", str(tmp_path))
    assert "name each head" in refusal(capsys, "figures", str(good), "--heads", "*:0")
    assert "--stream" in refusal(capsys, "figures", str(good), "--stream", "value")
    assert "cannot make the folder" in refusal(capsys, "figures", str(good), "--output-dir", str(good / "sub"))


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_leaves_nothing(measured, tmp_path):
    hold = (
        "import ropescope.measurement.measure as m, time; m._run = lambda *a: (print('on', flush=True), time.sleep(60))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{hold}\nfrom ropescope.cli import main\nmain({measured!r})"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip().splitlines() == ["ropescope: interrupted; nothing was left half-written"]
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt"}


@pytest.fixture
def result(measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    cli.main(measured)
    capsys.readouterr()
    return tmp_path / "result.nc"


@pytest.fixture
def sweeping(saved: Path, text: Path, result: Path, tmp_path: Path) -> list[str]:
    """Arguments that sweep the tiny model on a small text into sweep.nc."""
    arguments = ["sweep", str(saved), str(result), "--corpus", str(text), "--length", "64", "--count", "3"]
    few = ["--select", "pair < 2", "spectrum_fe < 0", "--alphas", "0", "0.5", "--random-seeds", "7"]
    return [*arguments, *few, "--output", str(tmp_path / "sweep.nc")]


def test_select_counts_the_pairs_and_writes_a_mask(result, tmp_path, capsys):
    mask = tmp_path / "half.safetensors"
    cli.main(["select", str(result), "pair < 2", "--output", str(mask)])
    output = capsys.readouterr().out
    assert "pair < 2: 16 of 32 query pairs, 8 of 16 key pairs" in output
    assert output.count("query     8  key     4") == 2
    assert int(rs.PairMask.load(mask).query.sum()) == 16
    assert "it exists" in refusal(capsys, "select", str(result), "pair < 1", "--output", str(mask))
    assert int(rs.PairMask.load(mask).query.sum()) == 16


@pytest.mark.slow
def test_show_says_again_what_each_kind_of_file_says(result, sweeping, tmp_path, capsys):
    cli.main(["show", str(result), "--most", "3"])
    shown = capsys.readouterr().out
    assert shown.startswith("query: 32 pairs in 2 layers") and "key: 16 pairs" in shown
    cli.main(["select", str(result), "pair < 2", "--output", str(tmp_path / "half.safetensors")])
    capsys.readouterr()
    cli.main(["show", str(tmp_path / "half.safetensors")])
    assert "16 of 32 query pairs" in capsys.readouterr().out
    cli.main(sweeping)
    told = capsys.readouterr().out
    cli.main(["show", str(tmp_path / "sweep.nc")])
    again = capsys.readouterr().out.strip().splitlines()
    assert len(again) > 5 and set(filter(None, again)) <= set(told.splitlines())
    assert "most" in refusal(capsys, "show", str(result), "--most", "0")
    assert "it does not exist" in refusal(capsys, "show", str(tmp_path / "nowhere.nc"))


@pytest.mark.slow
def test_bad_selections(result, capsys):
    assert "did you mean 'spectrum_fe'" in refusal(capsys, "select", str(result), "spectrum_fee < 0.2")
    assert "cannot parse" in refusal(capsys, "select", str(result), "spectrum_fe <")
    assert "is not allowed" in refusal(capsys, "select", str(result), "__import__('os').system('true')")


@pytest.mark.slow
def test_sweep_writes_curves_and_tables_and_goes_on_where_it_was(sweeping, tmp_path, capsys):
    cli.main(sweeping)
    output = capsys.readouterr().out
    data = xr.load_dataset(tmp_path / "sweep.nc", engine="h5netcdf")
    assert data["perplexity"].sizes == {"selection": 2, "arm": 3, "alpha": 3}
    assert float(data["perplexity"].sel(alpha=0.0)[0, 0]) != float(data["perplexity"].sel(alpha=1.0)[0, 0])
    assert "pair < 2" in output and "against random" in output
    made = {path.name for path in tmp_path.iterdir() if path.name.startswith("sweep")}
    assert made == {"sweep.nc", "sweep.png", "sweep.md", "sweep.csv"}
    content = (tmp_path / "sweep.nc").read_bytes()
    cli.main(sweeping)
    assert (tmp_path / "sweep.nc").read_bytes() == content
    (tmp_path / "again.nc").write_bytes(content)
    capsys.readouterr()
    cli.main(["figures", *(str(tmp_path / name) for name in ("sweep.nc", "again.nc")), "--output-dir", str(tmp_path)])
    assert capsys.readouterr().out.split() == [str(tmp_path / "sweep-curves.png")]


@pytest.mark.slow
def test_bad_options_of_sweep(sweeping, tmp_path, capsys):
    assert "nan" in refusal(capsys, *replaced(sweeping, "--alphas", "nan"))
    assert "2" in refusal(capsys, *replaced(sweeping, "--alphas", "2"))
    assert "0 windows" in refusal(capsys, *replaced(sweeping, "--length", "100000"))
    assert not (tmp_path / "sweep.nc").exists()


@pytest.mark.slow
def test_baked_folder_opens_in_plain_transformers(saved, result, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "baked"
    arguments = ["bake", str(saved), str(result), "--select", "pair < 2", "--alpha", "0.1", "--output", str(folder)]
    cli.main(arguments)
    assert "16 of 32 query pairs" in capsys.readouterr().out
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (saved, folder))
    capsys.readouterr()
    rows = new.model.layers[0].self_attn.q_proj.weight / old.model.layers[0].self_attn.q_proj.weight
    assert rows.mean(1)[:4].tolist() == pytest.approx([0.1, 0.1, 1, 1], rel=1e-2)
    assert "is not an empty folder" in refusal(capsys, *arguments)
    made_of = json.loads((folder / "ropescope.json").read_text())
    assert (made_of["selection"], made_of["alpha"]) == ("pair < 2", 0.1)
    assert made_of["model"] == json.loads(rs.load(result).attrs["provenance"])["model"]


@pytest.mark.slow
def test_selections_are_listed_with_what_they_hold(result, capsys):
    cli.main(["select", "--list"])
    listed = capsys.readouterr().out
    assert "  bands              spectrum_fe < 0.2\n" in listed and "query pairs" not in listed
    assert "  fisher             importance (nat/token)\n" in listed
    cli.main(["select", str(result), "--list"])
    counted = capsys.readouterr().out
    held = rs.select(rs.load(result), "spectrum-outliers").counts()
    row = next(line for line in counted.splitlines() if line.startswith("  spectrum-outliers"))
    assert row.split()[-6:] == [
        str(int(held["query"].sum())),
        "query",
        "pairs",
        str(int(held["key"].sum())),
        "key",
        "pairs",
    ]
    assert "select got no expression; give RESULT and one, or --list" in refusal(capsys, "select", str(result))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command, capsys):
    cli.main([command, "--help"])
    output = capsys.readouterr().out
    assert f"ropescope {command}" in output and "Example:" in output


def test_a_pipe_gets_no_progress_bar(measured, capsys):
    cli.main(measured)
    assert capsys.readouterr().err == ""


def test_python_dash_m_is_the_command():
    finished = subprocess.run([sys.executable, "-m", "ropescope", "--version"], capture_output=True, text=True)
    assert finished.returncode == 0 and finished.stdout.strip()


@pytest.mark.models
def test_demo_measures_draws_and_says_what_to_look_at(builtin, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ropescope.model.loading.load_model", lambda source: builtin)
    cli.main(["demo", "--output-dir", str(tmp_path)])
    output = capsys.readouterr().out
    names = {f"builtin-{stream}-{name}.png" for stream in ("query", "key") for name in ("panel", "overview")}
    made = {"builtin.nc", "builtin-importance.nc", "builtin-sweep.nc", "builtin-curves.png", "builtin.html"}
    assert {path.name for path in tmp_path.iterdir()} == names | made
    for word in ("layers 0-29", "strongest bands", "What to look at", "ropescope measure", "What matters?"):
        assert word in output
    assert re.search(
        r"^Bands are \d+ % of the query pairs and hold \d+ % \(\d+ % to \d+ %\) of what the loss feels\.$", output, re.M
    )
    bands, outliers, periodic, _, last = output.strip().splitlines()[-5:]
    assert last.endswith(str(tmp_path / "builtin.html"))
    assert "alpha 0 raises perplexity from" in bands and "random pairs" in bands
    assert outliers.startswith("spectrum-outliers (") and "perplexity" in outliers
    assert periodic == "periodic (0 query, 0 key pairs): this model has none"
