"""Perplexity equals the plain loop over the model's own logits, on every architecture, and leaves nothing behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from architectures import ARCHITECTURES, DYNAMIC_NTK, LLAMA, VOCABULARY, Architecture, state_of, tokens
from ropescope.base.errors import InputError, ModelError, NonFiniteError
from ropescope.evaluation.perplexity import perplexity
from ropescope.model import lm_head
from ropescope.model.windows import TokenWindows

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = (
    Architecture(
        "gemma2-cap",
        "Gemma2Config",
        settings=LLAMA.settings | {"final_logit_softcapping": 2.0},
        implementations=("eager",),
    ),
    Architecture("cohere2-scale", "Cohere2Config", settings=LLAMA.settings | {"logit_scale": 3.0}),
    Architecture(
        "granite-scaling",
        "GraniteConfig",
        settings={name: value for name, value in LLAMA.settings.items() if name != "head_dim"}
        | {"logits_scaling": 0.25},
    ),
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven positions a chunk, so that chunks neither fill a window nor divide it."""
    monkeypatch.setitem(lm_head._LOGITS, "cpu", 7 * VOCABULARY)
    monkeypatch.setattr(lm_head, "_POSITIONS", 1)


def plain_nats(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """The textbook loop: nats of every token but the first, (window, token), float64."""
    with torch.no_grad():
        rows = [cross_entropy(model(row[None]).logits[0, :-1].float(), row[1:], reduction="none") for row in windows]
    return torch.stack(rows).double()


@pytest.mark.parametrize("architecture", (*ARCHITECTURES, *HEADS), ids=str)
def test_equals_the_plain_loop(architecture: Architecture) -> None:
    model = architecture.shared()
    expected = plain_nats(model, tokens())
    before = state_of(model)
    found = perplexity(model, tokens())
    assert state_of(model) == before
    np.testing.assert_allclose(found.window_nats, expected.sum(1), rtol=2e-6)
    assert found.value == pytest.approx(math.exp(expected.mean()), rel=2e-6)


@pytest.mark.parametrize("architecture", HEADS, ids=str)
def test_the_heads_own_rule_matters(architecture: Architecture) -> None:
    """Without soft cap or scale the numbers would be others, so the test above can fail."""
    model = architecture.shared()
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=tokens()).last_hidden_state
        bare = model.get_output_embeddings()(hidden)[:, :-1].flatten(0, 1)
    assert abs(cross_entropy(bare, tokens()[:, 1:].flatten()) - plain_nats(model, tokens()).mean()) > 1e-2


def test_sums_and_protocol() -> None:
    windows = TokenWindows(tokens(3, 20), {"corpus": "made up", "bos": True})
    found = perplexity(LLAMA.shared(), windows)
    assert found.window_nats.dtype == np.float64
    assert found.window_tokens.tolist() == [19, 19, 19]
    assert found.tokens == 57
    assert found.nats == found.window_nats.sum()
    assert found.value == math.exp(found.nats / 57)
    assert found.protocol == {
        "corpus": "made up",
        "bos": True,
        "stride": None,
        "scored": "every token but a window's first",
        "dtype": "float32",
        "batch_size": 1,
    }
    assert str(found) == f"perplexity {found.value:.4g} over 57 tokens of 3 windows"


@pytest.mark.parametrize("stride", [1, 5, 47])
def test_stride_scores_the_end_of_each_window(stride: int) -> None:
    found = perplexity(LLAMA.shared(), tokens(), stride=stride)
    expected = plain_nats(LLAMA.shared(), tokens())[:, -stride:]
    np.testing.assert_allclose(found.window_nats, expected.sum(1), rtol=2e-6)
    assert found.tokens == 2 * stride
    assert found.protocol["scored"] == f"the last {stride} tokens of each window"


def test_batches_change_nothing() -> None:
    one, many = (perplexity(LLAMA.shared(), tokens(5), batch_size=size) for size in (1, 3))
    np.testing.assert_allclose(one.window_nats, many.window_nats, rtol=2e-6)


@pytest.mark.parametrize(
    ("limit", "least", "held"), [(7, 1, 7), (1000, 1, 47 // 4), (0, 1, 1), (3, 9, 9), (3, 1000, 47 // 4)]
)
def test_logits_of_a_window_are_never_held(monkeypatch: pytest.MonkeyPatch, limit: int, least: int, held: int) -> None:
    """As many as the limit allows but enough to be worth reading the head, at most a quarter of a window."""
    monkeypatch.setitem(lm_head._LOGITS, "cpu", limit * VOCABULARY)
    monkeypatch.setattr(lm_head, "_POSITIONS", least)
    sizes = []
    model = LLAMA.build()
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, logits: sizes.append(logits.numel()))
    perplexity(model, tokens(4), batch_size=4)
    assert max(sizes) == held * VOCABULARY
    assert sum(sizes) == 4 * 47 * VOCABULARY


def test_half_precision_is_scored_in_float32() -> None:
    model = LLAMA.shared(torch.bfloat16)
    found = perplexity(model, tokens())
    assert found.protocol["dtype"] == "bfloat16"
    np.testing.assert_allclose(found.window_nats, plain_nats(model, tokens()).sum(1), rtol=2e-3)


@pytest.mark.parametrize("architecture", [LLAMA, DYNAMIC_NTK], ids=str)
def test_leaves_mode_forward_and_gradients_alone(architecture: Architecture) -> None:
    model = architecture.build().train()
    decoder = model.get_decoder()
    wrapped = decoder.forward
    decoder.forward = wrapped
    before = state_of(model)
    perplexity(model, tokens())
    assert state_of(model) == before
    assert vars(decoder)["forward"] is wrapped
    assert torch.is_grad_enabled()


def test_the_decoder_comes_back_after_an_error() -> None:
    model = LLAMA.build()
    handle = model.get_output_embeddings().register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        perplexity(model, tokens())
    handle.remove()
    assert "forward" not in vars(model.get_decoder())
    perplexity(model, tokens())


@pytest.mark.parametrize(
    ("windows", "options", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), {}, r"windows got shape \(4,\), torch.int64"),
        (torch.zeros(2, 8), {}, r"windows got shape \(2, 8\), torch.float32"),
        (torch.zeros(0, 8, dtype=torch.int64), {}, r"windows got shape \(0, 8\)"),
        (torch.zeros(2, 1, dtype=torch.int64), {}, "at least 2 tokens in a window"),
        (torch.zeros(2, 0, dtype=torch.int64), {}, "with at least one of each"),
        (torch.full((1, 8), VOCABULARY), {}, f"vocabulary is 0 to {VOCABULARY - 1}; make the windows with"),
        (torch.full((1, 8), -100), {}, "token ids from -100 to -100"),
        (tokens(), {"stride": 0}, "stride got 0; it is 1 to 47 for windows of 48 tokens, or None for all"),
        (tokens(), {"stride": 48}, "stride got 48"),
        (tokens(), {"batch_size": 0}, "batch_size got 0; it is at least 1"),
    ],
)
def test_bad_input(windows: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        perplexity(LLAMA.shared(), windows, **options)


def test_non_finite_names_the_window() -> None:
    model = LLAMA.build()
    with torch.no_grad():
        model.get_input_embeddings().weight[98] = torch.nan
    windows = tokens(3).clamp(max=97)
    windows[2, 4] = 98
    with pytest.raises(NonFiniteError, match="of 47 tokens of window 2 no finite probability; check the weights"):
        perplexity(model, windows)


def test_a_model_that_goes_around_its_decoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LLAMA.build()
    other = LLAMA.build(seed=1)
    monkeypatch.setattr(model, "get_decoder", other.get_decoder)
    with pytest.raises(ModelError, match="does not make its logits from its decoder's output"):
        perplexity(model, tokens())
