"""What a look at a model sees is what the model computes, and heads made by hand are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from architectures import ARCHITECTURES, LLAMA, state_of, tokens
from ropescope import cli
from ropescope.base.errors import InputError
from ropescope.base.rotary import Pairing, turn
from ropescope.evaluation.claims.arms import BAND_ANGLE, LOUD, PLAIN, RANDOM, TWICE_PLAIN, arms_of, past_the_band
from ropescope.evaluation.claims.attending import attended, attention
from ropescope.evaluation.claims.behaviour import behaviour
from ropescope.evaluation.claims.behaviour_dataset import BEHAVIOUR
from ropescope.evaluation.claims.judging import claims
from ropescope.evaluation.perplexity import perplexity
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.measure import measure
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.card import LayerRotation

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH, PAIRS = 128, 16
SPEED = 10_000.0 ** (-torch.arange(PAIRS, dtype=torch.float64) / PAIRS)
FRAMES = {"frame_length": 32, "hop_length": 16}
EAGER = [
    each
    for each in ARCHITECTURES
    if str(each) in ("llama", "gemma2", "gemma3", "qwen3", "cohere2", "gpt-oss", "llama4")
]


@pytest.mark.parametrize("architecture", EAGER, ids=str)
def test_attention_is_that_of_the_model(architecture) -> None:
    """Also with a soft cap, a sliding window, sinks and a scale of the model's own."""
    model, ids = architecture.build(implementation="eager"), tokens(1, 40)
    seen: dict[int, torch.Tensor] = {}

    def look(call: AttentionCall) -> None:
        seen[call.layer] = attention(call, torch.tensor([3, 20, 39]))

    with torch.no_grad(), intercepted(model, look):
        theirs = model(ids, output_attentions=True, use_cache=False).attentions
    assert len(seen) == len(theirs)
    for ours, whole in zip(seen.values(), theirs, strict=True):
        torch.testing.assert_close(ours, whole[0][:, [3, 20, 39]].float(), rtol=1e-4, atol=1e-6)


def call_of(query: torch.Tensor, key: torch.Tensor) -> AttentionCall:
    """One head of each kind of given amplitudes, (position, dimension) before rotation, as attention sees it."""
    pairing = Pairing("half-split", 0, 2 * PAIRS)
    angle = torch.arange(LENGTH, dtype=torch.float64)[:, None] * SPEED
    cos, sin = angle.cos().float(), angle.sin().float()
    turned = [turn(each.float(), cos, sin, pairing)[None] for each in (query, key)]
    return AttentionCall(0, turned[0], turned[1], {"scaling": 1.0})


def rotation(heads: int) -> LayerRotation:
    return LayerRotation(0, heads, heads, 2 * PAIRS, Pairing("half-split", 0, 2 * PAIRS), SPEED, True, {})


def positional(pairs: slice, amplitude: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A head whose score is highest one token back, from the pairs given: the query is turned back by one token."""
    query, key = torch.zeros(LENGTH, 2 * PAIRS), torch.zeros(LENGTH, 2 * PAIRS)
    key[:, :PAIRS][:, pairs] = amplitude
    query[:, :PAIRS][:, pairs] = (amplitude * (-SPEED).cos().float())[pairs]
    query[:, PAIRS:][:, pairs] = (amplitude * (-SPEED).sin().float())[pairs]
    return query, key


def test_a_head_of_fast_pairs_looks_one_token_back_and_one_of_slow_pairs_does_not() -> None:
    sides = [positional(slice(0, 4)), positional(slice(12, 16))]
    query, key = (torch.stack([side[n] for side in sides]) for n in (0, 1))
    found = attended(call_of(query, key), rotation(2))
    assert found["previous"][0] > 0.9 and found["diagonal"][0] > 0.99
    assert found["previous"][1] < 0.2


def test_a_head_that_looks_for_content_has_no_diagonal() -> None:
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, LENGTH, 2 * PAIRS, generator=random) for _ in range(2))
    quiet = torch.zeros(2 * PAIRS).index_fill_(0, torch.tensor([15, 31]), 4.0)
    found = attended(call_of(query * quiet, key * quiet), rotation(1))
    assert found["diagonal"][0] < 0.2 and found["previous"][0] < 0.2


def test_a_few_loud_pairs_choose_the_tokens_and_equal_pairs_share_the_choice() -> None:
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, LENGTH, 2 * PAIRS, generator=random) for _ in range(2))
    loud = torch.ones(2, 1, 2 * PAIRS)
    loud[0, :, [5, 21, 9, 25]] = 40.0
    found = attended(call_of(query * loud, key), rotation(2))
    assert found["best"][0] > 0.9 > 0.7 > found["best"][1]
    assert found["random"][0] < found["best"][0] and abs(found["random"][1] - found["best"][1]) < 0.25


@pytest.fixture(scope="module")
def made():
    model, windows = LLAMA.shared(), tokens(5, 64)
    result = measure(model, windows, **FRAMES)
    return model, windows, result, behaviour(model, windows, result)


@pytest.mark.slow
def test_a_look_holds_what_arms_give_by_themselves(made) -> None:
    model, windows, result, look = made
    arms = arms_of(result)
    assert [str(name) for name in look["arm"].values] == list(arms)
    plain = perplexity(model, windows)
    np.testing.assert_allclose(look["nats"].sel(arm=PLAIN), plain.window_nats / plain.window_tokens, rtol=1e-6)
    with weighted_rope(model, arms[LOUD].mask, 0.5):
        twice = torch.cat((windows[:, :32], windows[:, :32]), 1)
        second = perplexity(model, twice, stride=31)
        first = perplexity(model, windows[:, :32])
    np.testing.assert_allclose(look["readings"].sel(arm=LOUD, reading="first"), first.window_nats / 31, rtol=1e-6)
    np.testing.assert_allclose(look["readings"].sel(arm=LOUD, reading="second"), second.window_nats / 31, rtol=1e-6)
    assert look["nats"].sel(arm=TWICE_PLAIN).isnull().all() and look["readings"].sel(arm=PLAIN).isnull().all()
    assert look["previous"].notnull().all() and look["diagonal"].min() >= 0 and look["diagonal"].max() <= 1


def test_a_look_is_told_in_tables_of_words(made, tmp_path, capsys) -> None:
    _, _, _, look = made
    BEHAVIOUR.save(look, tmp_path / "look.nc")
    cli.main(["show", str(tmp_path / "look.nc")])
    printed = capsys.readouterr().out
    assert "xarray" not in printed and "attention to the token before" in printed
    layer, head = np.unravel_index(
        look["previous"].mean("sequence").values.argmax(), (look.sizes["layer"], look.sizes["head"])
    )
    row = next(line for line in printed.splitlines() if line.startswith("attention to the token before"))
    assert row.split()[-1] == f"{look['layer'].values[layer]}:{head}"
    plain = next(line for line in printed.splitlines() if line.startswith("plain"))
    assert f"{float(look['nats'].sel(arm=PLAIN).mean()):.3f} [" in plain
    assert all(arm in printed for arm in look["arm"].values.tolist() if arm != TWICE_PLAIN)


def test_arms_change_the_pairs_that_their_names_say(made) -> None:
    _, _, result, _ = made
    arms = arms_of(result)
    norm = result["key"].mean_norm.mean("sequence")
    loud = arms[LOUD].mask.key
    assert (loud.sum("pair") == 1).all() and (norm.where(loud).max("pair") == norm.max("pair")).all()
    assert [arms[RANDOM[times]].pairs for times in (1, 2, 4)] == [times * arms[LOUD].pairs for times in (1, 2, 4)]
    speed = result["rotary"].frequency
    slow, fast = (arms[name].mask.key.isel(kv_head=0) for name in ("slow off", "fast off"))
    assert speed.where(slow).max() < speed.where(~slow & ~fast).min() <= speed.where(~slow & ~fast).max()
    assert speed.where(~slow & ~fast).max() < speed.where(fast).min() and int(slow.sum()) == int(fast.sum())


def test_pairs_past_the_band_turn_less_than_it_does(made) -> None:
    _, _, result, _ = made
    past = past_the_band(result, context=1000)
    assert past is not None
    np.testing.assert_array_equal(past, result["rotary"].frequency.values * 1000 < BAND_ANGLE)
    assert past.any() and not past.all()


@pytest.mark.slow
def test_a_look_is_kept_goes_on_and_leaves_the_model_as_it_was(made, tmp_path: Path) -> None:
    model, windows, result, look = made
    before = state_of(model)
    path = tmp_path / "look.nc"
    verdicts = claims({"one": result}, model=model, windows=windows, path=path)
    assert state_of(model) == before and not list(tmp_path.glob("*.partial"))
    stamp = path.stat().st_mtime_ns
    again = claims({"one": result}, model=model, windows=windows, path=path)
    assert path.stat().st_mtime_ns == stamp
    from_file = claims({"one": result, "look": path})
    assert verdicts.json() == again.json() == from_file.json()
    assert verdicts["few-pairs-choose-tokens"].tests
    np.testing.assert_array_equal(behaviour(model, windows, result, path=path)["nats"], look["nats"])


def test_what_cannot_be_looked_at_is_refused(made) -> None:
    model, windows, result, _ = made
    with pytest.raises(InputError, match="windows of 32 tokens; to look back they need at least 64"):
        behaviour(model, windows[:, :32], result)
    with pytest.raises(InputError, match="the measurement is of another model"):
        behaviour(LLAMA.build(seed=1), windows, result)
    with pytest.raises(InputError, match="give windows, and a measurement"):
        claims({"one": result}, model=model)
