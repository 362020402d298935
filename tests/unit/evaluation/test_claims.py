"""Each claim says yes and no where that is planted; with too little to judge by, that it cannot be said."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import xarray as xr

from planted import HEADS, LAYERS, PAIRS, RUN, SCATTERED, WINDOWS, importance, look, measurement, sweep, tasks
from ropescope.base.entropy import sequence_fe
from ropescope.base.errors import InputError
from ropescope.cli import app
from ropescope.evaluation.claims.arms import LOUD, contexts
from ropescope.evaluation.claims.evidence import gathered
from ropescope.evaluation.claims.findings import CANNOT, FAILS, HOLDS, VERDICTS, Finding, above, below, inside, judged
from ropescope.evaluation.claims.judging import claims, claims_by_model
from ropescope.evaluation.claims.table import CLAIMS
from ropescope.measurement.red_noise import _red, rhythm_of_red_noise
from synthetic import synthetic_result

ALL = tuple(range(PAIRS))
DRIFTING = (4096.0, 2048.0, 4096.0, 1365.0, 2048.0, 4096.0)
ROPE = tuple(layer for layer in range(LAYERS) if layer % 2 == 0)
NOPE = tuple(layer for layer in range(LAYERS) if layer % 2)
MIXED = {"nope": NOPE, "periodic": (1, 2), "bands": RUN}
FAST = np.random.default_rng(3).uniform(0.5, 3, (LAYERS, HEADS))
RIGHT = [1.0] * 1500 + [0.0] * 500


def of(*given: xr.DataTree | xr.Dataset) -> dict[str, Any]:
    return {f"file {number}": each for number, each in enumerate(given)}


def nope_result(banded: tuple[int, ...], beating: tuple[int, ...]) -> xr.DataTree:
    """Odd layers do not turn; bands and periodic pairs lie in the layers given."""
    result = measurement(RUN, nope=NOPE, only_layers=banded)
    other = measurement(periodic=(1, 2), nope=NOPE, only_layers=beating)
    for stream in ("query", "key"):
        data = result[stream].to_dataset(inherit=False)
        result[stream] = xr.DataTree(data.assign(sequence_fe=other[stream].to_dataset()["sequence_fe"]))
    return result


TRUTHS: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "bands-are-loud": ([measurement(RUN)], [measurement(RUN, loud=0.5)], [measurement()]),
    "bands-are-contiguous": (
        [measurement(RUN)],
        [measurement(SCATTERED)],
        [measurement(RUN, layers=2, only_layers=(0, 1))],
    ),
    "low-sequence-fe-is-rhythm": (
        [measurement(periodic=(1, 2, 3))],
        [measurement(periodic=(1, 2, 3), periods=DRIFTING)],
        [measurement()],
    ),
    "nope-has-bands-not-periods": (
        [nope_result(banded=NOPE, beating=ROPE)],
        [nope_result(banded=ROPE, beating=NOPE)],
        [measurement(RUN)],
    ),
    "key-bands-are-loud": (
        [measurement((), key_bands=RUN)],
        [measurement(RUN, key_bands=RUN, loud=0.5)],
        [measurement(RUN, key_bands=())],
    ),
    "key-bands-are-contiguous": (
        [measurement(SCATTERED, key_bands=RUN)],
        [measurement(RUN, key_bands=SCATTERED)],
        [measurement(RUN, key_bands=())],
    ),
    "keys-are-more-periodic": (
        [measurement(periodic=(1,), key_periodic=(1, 2, 3))],
        [measurement(periodic=(1, 2, 3), key_periodic=(1,))],
        [measurement()],
    ),
    "bands-in-many-heads": (
        [measurement(RUN)],
        [measurement(RUN, only_layers=(0,))],
        [measurement(RUN, only_layers=(0, 2, 4, 6, 7))],
    ),
    "other-model-other-places": (
        [measurement(RUN), measurement((11, 12, 13, 14), weights="other")],
        [measurement(RUN), measurement(RUN, weights="other")],
        [measurement(RUN), measurement((11, 12, 13, 14), corpus="c4")],
    ),
    "text-does-not-matter": (
        [measurement(RUN), measurement(RUN, corpus="c4")],
        [measurement(RUN), measurement((9, 10, 11, 12), corpus="c4")],
        [measurement(RUN), measurement(RUN, length=8192)],
    ),
    "length-does-not-matter": (
        [measurement(RUN, periodic=(1, 2)), measurement(RUN, periodic=(1, 2), length=8192)],
        [measurement(RUN), measurement((9, 10, 11, 12), length=8192)],
        [measurement(RUN), measurement(RUN, corpus="c4")],
    ),
    "bands-are-essential": (
        [sweep("bands", 0.5, 0.1)],
        [sweep("bands", 0.1, 0.5)],
        [sweep("bands", 0.5, 0.1, windows=4)],
    ),
    "bands-hold-importance": (
        [measurement(RUN), importance(RUN, 10)],
        [measurement(RUN), importance(RUN, 0.1)],
        [measurement(RUN), importance(RUN, 10, windows=4)],
    ),
    "outliers-are-redundant": (
        [sweep("spectrum_fe > 0.4", 0.0, 0.3)],
        [sweep("spectrum_fe > 0.4", 0.3, 0.3)],
        [sweep("spectrum-outliers", 0.0, 0.3, noise=0.1)],
    ),
    "periodic-are-redundant": (
        [sweep("periodic", -0.1, 0.3)],
        [sweep("periodic", 0.1, 0.3)],
        [sweep("bands", 0.1, 0.3)],
    ),
    "tasks-are-unchanged": (
        [tasks(RIGHT, RIGHT[::1])],
        [tasks(RIGHT, [0.0] * 500 + RIGHT[500:])],
        [tasks(RIGHT[:100], RIGHT[:98] + [0.0] * 2)],
    ),
    "neither-fast-nor-slow": (
        [measurement((0, 4, 8, 12), wander=True)],
        [measurement((0, 1, 2, 3))],
        [measurement()],
    ),
    "fast-pairs-make-positional-heads": (
        [measurement(fast=FAST), look(FAST / 4)],
        [measurement(fast=FAST), look(1 - FAST / 4)],
        [measurement(fast=FAST), look(np.random.default_rng(4).random((LAYERS, HEADS)))],
    ),
    "slow-pairs-are-loud": (
        [measurement((12, 13, 14, 15))],
        [measurement((0, 1, 2, 3))],
        [measurement((12, 13, 14, 15), only_layers=(0,))],
    ),
    "slow-pairs-carry-content": ([look()], [look(costs={"slow still": 1.0})], [look(windows=4)]),
    "band-sits-where-the-context-ends": (
        [measurement((11, 12, 13))],
        [measurement((1, 2, 3))],
        [measurement((11, 12, 13), context=None)],
    ),
    "pairs-past-the-band-need-no-rotation": (
        [measurement(), look()],
        [measurement(), look(costs={"past the band still": 0.2})],
        [measurement(), look(length=512)],
    ),
    "loud-keys-turn-less-than-once": (
        [measurement((13, 14))],
        [measurement(RUN)],
        [measurement((13, 14), context=2**40)],
    ),
    "few-pairs-choose-tokens": ([look()], [look(best=0.32)], [look(windows=4)]),
    "few-pairs-hold-importance": (
        [importance((3,), 50, windows=12)],
        [importance((3,), 1, windows=12)],
        [importance((3,), 50, windows=6)],
    ),
    "loud-pairs-serve-the-context": (
        [look()],
        [look(twice={LOUD: (3.5, 0.9)})],
        [look(twice={LOUD: (9.0, 9.0)})],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", [claim.key for claim in CLAIMS])
@pytest.mark.parametrize(("row", "verdict"), list(enumerate((HOLDS, FAILS, CANNOT))))
def test_a_planted_truth_is_found(key: str, row: int, verdict: str) -> None:
    (claim,) = (claim for claim in CLAIMS if claim.key == key)
    found = claim.judge(gathered(of(*TRUTHS[key][row])))
    assert found.verdict == verdict, found
    assert bool(found.settles) == (verdict == CANNOT)
    if verdict != CANNOT:
        assert found.tests and not any(math.isnan(test.low) for test in found.tests)


def test_without_evidence_no_claim_is_judged() -> None:
    for claim in CLAIMS:
        lacking = sweep("nothing", 0, 0) if "measurement" in claim.needs else measurement()
        found = claim.judge(gathered(of(lacking)))
        assert found.verdict == CANNOT and not found.tests and found.settles and found.reason.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("key", [claim.key for claim in CLAIMS])
def test_what_would_settle_it_is_a_command_that_there_is(key: str) -> None:
    (claim,) = (claim for claim in CLAIMS if claim.key == key)
    lacking = sweep("nothing", 0, 0) if "measurement" in claim.needs else measurement()
    for evidence in ([lacking], TRUTHS[key][2]):
        for command in re.findall("ropescope ([^;,()]*)", claim.judge(gathered(of(*evidence))).settles):
            app.parse_args(command.partition(" without ")[0], exit_on_error=False, print_error=False)


def test_what_would_settle_it_asks_for_more_windows_than_there_were() -> None:
    def settles(key: str, *given: xr.DataTree | xr.Dataset) -> str:
        return claims(of(*given), only=[key])[key].settles

    for windows in (6, 20):
        undecided = look(windows=windows, twice={LOUD: (9.0, 9.0)})
        assert settles("loud-pairs-serve-the-context", undecided).endswith(f" --count {2 * windows}")
    assert settles("few-pairs-choose-tokens", look(windows=3)).endswith(" --count 8")
    assert settles("text-does-not-matter", measurement(RUN)).endswith(" --corpus c4")
    few = [measurement(RUN, corpus=corpus).isel(sequence=[0, 1, 2]) for corpus in ("wikitext", "c4")]
    assert settles("text-does-not-matter", *few).endswith(" --count 8 --corpus c4")


@pytest.mark.parametrize("lost", [1, 3, 6])
def test_as_many_more_documents_as_are_advised_settle_it(lost: int) -> None:
    plain = RIGHT[1400:1600]
    changed = [0.0] * lost + plain[lost:]

    def unchanged(times: int) -> Finding:
        return claims(of(tasks(plain * times, changed * times)))["tasks-are-unchanged"]

    found = unchanged(1)
    assert found.verdict == "cannot be said"
    [times] = map(int, re.findall(r"about (\d+) times as many documents", found.reason))
    assert times > 1
    assert unchanged(times).verdict == ("holds" if lost / len(plain) < 0.02 else "fails")


def test_no_number_of_documents_is_advised_at_the_edge_of_the_margin() -> None:
    found = claims(of(tasks(RIGHT[:100], RIGHT[:98] + [0.0] * 2)))["tasks-are-unchanged"]
    assert "times as many" not in found.reason
    assert found.settles.startswith("more documents: ropescope tasks")


class TestRules:
    def test_an_effect_holds_beyond_what_counts_fails_below_it_and_else_is_open(self) -> None:
        for low, high, verdict in [
            (0.3, 1, HOLDS),
            (0.1, 1, CANNOT),
            (-1, -0.1, FAILS),
            (-1, 1, CANNOT),
            (-0.1, 0.1, FAILS),
            (0.05, 0.1, FAILS),
        ]:
            estimate = ((low + high) / 2, low, high)
            assert above("it", estimate, 0.0, "nothing", over="layers", least=0.2).verdict == verdict
            mirrored = (-estimate[0], -high, -low)
            assert below("it", mirrored, 0.0, "nothing", over="layers", least=0.2).verdict == verdict

    def test_a_margin_takes_the_whole_interval(self) -> None:
        for low, high, verdict in [
            (-0.5, 0.5, HOLDS),
            (-2, 0.5, CANNOT),
            (-0.5, 3, CANNOT),
            (-9, 9, CANNOT),
            (2, 3, FAILS),
        ]:
            assert inside("it", (0, low, high), (-1, 1), "nothing", over="windows").verdict == verdict

    def test_without_an_interval_nothing_is_decided(self) -> None:
        for make, bound in ((above, 0.0), (below, 9.0), (inside, (0.0, 9.0))):
            test = make("it", (5.0, math.nan, math.nan), bound, "nothing", over="1 window")  # type: ignore[operator]
            assert test.verdict == CANNOT and "no interval" in test.sentence()

    def test_one_test_that_fails_refutes_and_all_must_hold(self) -> None:
        yes, no, open_ = (above("it", (x, x - 1, x + 1), 0.0, "nothing", over="layers") for x in (2, -2, 0))
        assert [judged(tests).verdict for tests in ([yes, yes], [yes, open_], [yes, open_, no])] == [
            HOLDS,
            CANNOT,
            FAILS,
        ]


def test_runs_of_shuffled_pairs_are_as_long_as_they_are_said_to_be() -> None:
    """Bands drawn anew in every head are no longer than chance makes them, and the control is the mean of draws."""
    random = np.random.default_rng(0)
    result = measurement(layers=24, only_layers=())
    for stream in ("query", "key"):
        data = result[stream].to_dataset(inherit=False)
        fe = data["spectrum_fe"].values.copy()
        for layer, head in np.ndindex(*fe.shape[1:3]):
            fe[:, layer, head, random.permutation(PAIRS)[:6]] = 0.1
        result[stream] = xr.DataTree(data.assign(spectrum_fe=(data["spectrum_fe"].dims, fe)))
    (test,) = claims(of(result), only=["bands-are-contiguous"])["bands-are-contiguous"].tests
    drawn = [np.diff(np.pad(random.permutation(PAIRS) < 6, 1).astype(int)).clip(0).sum() for _ in range(4000)]
    assert test.control.value == pytest.approx(6 / np.mean(drawn), rel=0.02)
    assert abs(test.value) < 0.1 and test.low < 0


def test_red_noise_has_the_entropy_asked_for_and_hardly_ever_beats() -> None:
    import torch

    noise = np.random.default_rng(0).standard_normal((64, 1024))
    entropies = [float(sequence_fe(torch.from_numpy(_red(noise, rho))).mean()) for rho in (0.0, 0.9, 0.99)]
    assert entropies[0] > entropies[1] > entropies[2]
    assert rhythm_of_red_noise(1024, WINDOWS, 0.5) < 0.05 < 0.5 < rhythm_of_red_noise(1024, 1, 0.9)


def test_a_tone_beside_the_drift_of_red_noise_is_what_the_claim_asks_for() -> None:
    (test,) = claims(of(measurement(periodic=(1, 2, 3))), only=["low-sequence-fe-is-rhythm"]).findings[0][1].tests
    assert test.value == 1 and test.control.value < 0.1 and "AR(1)" in test.control.what


def test_a_few_pairs_are_too_little_to_call_a_selection_redundant() -> None:
    few = sweep("periodic", 0.0, 0.3)
    few["selected_pairs"][:] = [[9, 10]]
    found = claims(of(few), only=["periodic-are-redundant"])["periodic-are-redundant"]
    assert found.verdict == CANNOT and "0.6: 19; the least to judge by is 20" in found.reason
    few["selected_pairs"][:] = [[10, 10]]
    assert claims(of(few), only=["periodic-are-redundant"])["periodic-are-redundant"].verdict == HOLDS


def test_redundant_pairs_that_are_no_more_so_than_random_ones_are_said_to_be_nothing_special() -> None:
    special = claims(of(sweep("periodic", 0.0, 0.3)), only=["periodic-are-redundant"]).findings[0][1]
    plain = claims(of(sweep("periodic", 0.0, 0.0)), only=["periodic-are-redundant"]).findings[0][1]
    assert special.verdict == plain.verdict == HOLDS
    assert "They matter less than as many random pairs." in special.reason
    assert "not shown" in plain.reason


def test_verdicts_say_the_same_in_every_form() -> None:
    verdicts = claims(of(measurement(RUN), sweep("bands", 0.5, 0.1)))
    content = json.loads(verdicts.json())
    assert [each["key"] for each in content["claims"]] == [claim.key for claim in CLAIMS]
    assert {each["key"]: each["verdict"] for each in content["claims"]} == {
        claim.key: found.verdict for claim, found in verdicts.findings
    }
    for text in (verdicts.text(), verdicts.markdown()):
        assert all(claim.statement in " ".join(text.split()) for claim in CLAIMS)
        assert "bands are essential" in text and "nan" not in text.lower().split()
    held = sum(found.verdict == HOLDS for _, found in verdicts.findings)
    assert "| --- | --- | --- |" in verdicts.markdown() and "---:" not in verdicts.markdown()
    failed = sum(found.verdict == FAILS for _, found in verdicts.findings)
    assert verdicts.summary().startswith(
        f"Of {len(CLAIMS)} claims on synthetic/tiny-irope, {held} hold, {failed} fail, "
    )
    assert "Holds: bands are loud, bands are contiguous, " in verdicts.summary()


def test_every_claim_cites_a_text_and_a_place_in_it() -> None:
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.statement.endswith(".") and claim.place and re.search(r"20\d\d", claim.source.venue)
        assert claim.source.url.startswith("https://") and claim.source.url in str(claim.source)


def test_what_cannot_be_judged_together_is_refused() -> None:
    stranger = sweep("bands", 0.5, 0.1)
    stranger.attrs["provenance"] = json.dumps({"model": {"id": "stranger", "fingerprint": "1" * 16}})
    with pytest.raises(InputError, match=r"file 1 is of another model \(stranger\) than the one judged"):
        claims(of(measurement(RUN), stranger))
    with pytest.raises(InputError, match="claims got 'file 0', which is of no kind"):
        claims(of(xr.Dataset()))
    with pytest.raises(InputError, match="nothing to judge by"):
        claims({})
    with pytest.raises(InputError, match="did you mean 'bands-are-loud'"):
        claims(of(measurement()), only=["bands-are-lout"])


def test_where_attention_slides_the_context_is_its_window() -> None:
    result = measurement(RUN)
    facts = json.loads(result.attrs["provenance"])
    kinds = ["sliding_attention"] * 4 + ["full_attention"] * 4
    facts["model"]["config"] |= {"layer_types": kinds, "sliding_window": 512}
    result.attrs["provenance"] = json.dumps(facts)
    found = contexts(result)
    assert found is not None and found.tolist() == [512] * 4 + [4096] * 4
    assert contexts(result, context=256).tolist() == [256] * 8  # type: ignore[union-attr]


def test_of_several_models_each_is_judged_by_its_own_files() -> None:
    contents = {
        "one": measurement(RUN),
        "two": measurement(SCATTERED, weights="2" * 16),
        "sweep": sweep("bands", 0.5, 0.1),
    }
    found = claims_by_model(contents)
    assert list(found) == ["one", "two"]
    assert [verdicts["bands-are-contiguous"].verdict for verdicts in found.values()] == [HOLDS, FAILS]
    assert [verdicts["bands-are-essential"].verdict for verdicts in found.values()] == [HOLDS, CANNOT]
    assert all(verdicts["other-model-other-places"].tests for verdicts in found.values())
    alone = claims_by_model({"one": measurement(RUN), "again": measurement(RUN, corpus="c4")})
    assert list(alone) == ["one"] and alone["one"]["text-does-not-matter"].verdict == HOLDS


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"layers": 1, "nope_layers": ()},
        {"nope_layers": range(4)},
        {"sequences": 1, "nope_layers": ()},
        {"heads": 1, "pairs": 12, "layers": 6, "nope_layers": (1, 3)},
    ],
    ids=str,
)
def test_awkward_measurements_are_judged_without_a_warning(given: dict[str, Any]) -> None:
    """Padding, layers that do not turn, undefined pairs, one layer, one window, one head."""
    one, other = (synthetic_result(**given, corpus=corpus, seed=seed) for seed, corpus in enumerate(("wikitext", "c4")))
    verdicts = claims({"one": one, "other": other, "model": measurement(weights="other")})
    assert all(found.verdict in VERDICTS for _, found in verdicts.findings)
    assert verdicts.text() and json.loads(verdicts.json())
