"""Pairing, splitting and turning, against NumPy and against the rotations that transformers applies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropescope.base.entropy import sequence_power
from ropescope.base.errors import InputError
from ropescope.base.rotary import STYLES, Pairing, pair_norms, rotate, split_pairs

PAIRINGS = st.builds(
    Pairing, st.sampled_from(STYLES), st.integers(0, 512), st.integers(1, 256).map(lambda pairs: 2 * pairs)
)
BLOCKS = pytest.mark.parametrize(
    "pairing", [Pairing(style, *at) for style in STYLES for at in [(0, 16), (4, 8), (8, 8)]], ids=str
)
EVERY_STYLE = pytest.mark.parametrize("style", STYLES)
HEAD_DIM = 16


def random_heads(seed: int = 0, positions: int = 12, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, positions, HEAD_DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rope_angles(positions: int, pairs: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    frequency = 10_000.0 ** (-torch.arange(pairs, dtype=dtype) / pairs)
    return torch.arange(positions, dtype=dtype)[:, None] * frequency


# Pairing


@settings(deadline=None)
@given(pairing=PAIRINGS)
def test_parse_reads_what_str_writes(pairing):
    assert Pairing.parse(str(pairing)) == pairing


def test_a_pairing_counts_pairs_and_ends_where_its_text_says():
    pairing = Pairing("interleaved", 64, 32)
    assert (pairing.pairs, pairing.stop, str(pairing)) == (16, 96, "interleaved[64:96]")


@pytest.mark.parametrize(
    ("style", "start", "size"),
    [
        ("half", 0, 4),
        ("", 0, 4),
        ("half-split", -1, 4),
        ("half-split", 0, 0),
        ("interleaved", 0, 3),
        ("interleaved", 0, -2),
    ],
)
def test_an_impossible_pairing_is_refused(style, start, size):
    with pytest.raises(
        InputError, match=f"style '{style}', start {start}, size {size}; style is one of half-split, interl"
    ):
        Pairing(style, start, size)


@pytest.mark.parametrize(
    "text",
    ["", "llama[0:64]", "half-split", "half-split[0:64", "half-split[-2:4]", " half-split[0:64]", "half-split[0:64]\n"],
)
def test_text_that_is_no_pairing_is_refused(text):
    with pytest.raises(
        InputError, match=r"got pairing .*; it reads like 'half-split\[0:64\]' or 'interleaved\[0:64\]'"
    ):
        Pairing.parse(text)


@pytest.mark.parametrize(("text", "size"), [("half-split[0:3]", 3), ("interleaved[8:8]", 0), ("interleaved[8:4]", -4)])
def test_text_of_an_impossible_pairing_is_refused(text, size):
    with pytest.raises(InputError, match=f"no such pairing: .*size {size};"):
        Pairing.parse(text)


# Splitting and norms


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("half-split[0:8]", [0, 1, 2, 3], [4, 5, 6, 7]),
        ("interleaved[0:8]", [0, 2, 4, 6], [1, 3, 5, 7]),
        ("half-split[2:8]", [2, 3, 4], [5, 6, 7]),
        ("interleaved[2:8]", [2, 4, 6], [3, 5, 7]),
        ("half-split[6:8]", [6], [7]),
        ("interleaved[2:6]", [2, 4], [3, 5]),
    ],
)
def test_split_pairs_takes_the_dimensions_of_the_style(text, first, second):
    got = split_pairs(torch.arange(8.0).expand(3, 8), Pairing.parse(text))
    assert [component[1].tolist() for component in got] == [first, second]


@BLOCKS
def test_split_pairs_gives_views_of_the_block_and_nothing_else(pairing):
    heads = torch.zeros(5, HEAD_DIM)
    for component in split_pairs(heads, pairing):
        component += 1
    assert heads[:, pairing.start : pairing.stop].eq(1).all()
    assert heads.sum() == 5 * pairing.size


@EVERY_STYLE
def test_pair_norms_agree_with_numpy(style):
    heads = random_heads()
    block = heads.double().numpy()[..., 4:12]
    pairs = np.stack([block[..., :4], block[..., 4:]] if style == "half-split" else [block[..., ::2], block[..., 1::2]])
    wanted = torch.from_numpy(np.linalg.norm(pairs, axis=0))
    torch.testing.assert_close(pair_norms(heads, Pairing(style, 4, 8)).double(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pair_norms_are_taken_in_float32(dtype):
    heads = random_heads(dtype=dtype)
    pairing = Pairing("half-split", 0, HEAD_DIM)
    got = pair_norms(heads, pairing)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, pair_norms(heads.float(), pairing), rtol=0, atol=0)


def test_pair_norms_in_float16_do_not_overflow():
    assert pair_norms(torch.full((1, 2), 3e4, dtype=torch.float16), Pairing("half-split", 0, 2)).isfinite().all()


# Rotation


@BLOCKS
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_rotation_keeps_the_norms(pairing, seed, scale):
    heads = scale * random_heads(seed)
    turned = rotate(heads, 100 * torch.randn(3, 12, pairing.pairs, dtype=torch.float64), pairing)
    torch.testing.assert_close(pair_norms(turned, pairing), pair_norms(heads, pairing), rtol=1e-6, atol=0)


@BLOCKS
def test_the_negative_angle_undoes_a_rotation(pairing):
    heads, angle = random_heads(), 7 * rope_angles(12, pairing.pairs)
    torch.testing.assert_close(rotate(rotate(heads, angle, pairing), -angle, pairing), heads, rtol=0, atol=2e-6)
    assert not torch.allclose(rotate(heads, angle, pairing), heads, atol=1e-2)


@BLOCKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_angle_is_bit_equal(pairing, dtype):
    heads = random_heads(dtype=dtype)
    assert torch.equal(rotate(heads, torch.zeros(12, pairing.pairs), pairing), heads)


@BLOCKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dimensions_outside_the_block_stay_bit_for_bit(pairing, dtype):
    heads = random_heads(dtype=dtype)
    turned = rotate(heads, rope_angles(12, pairing.pairs) + 1, pairing)
    inside = torch.zeros(HEAD_DIM, dtype=torch.bool)
    inside[pairing.start : pairing.stop] = True
    assert torch.equal(turned[..., ~inside], heads[..., ~inside])
    assert (turned[..., inside] != heads[..., inside]).any(-1).all()


@EVERY_STYLE
def test_a_quarter_turn_takes_the_first_component_to_the_second(style):
    pairing = Pairing(style, 2, 4)
    heads = torch.tensor([9.0, 9.0, 1.0, 2.0, 3.0, 4.0])
    first, second = split_pairs(heads, pairing)
    turned = split_pairs(rotate(heads, torch.full((2,), torch.pi / 2), pairing), pairing)
    torch.testing.assert_close(turned, (-second, first))


@EVERY_STYLE
def test_each_pair_turns_by_its_own_angle(style):
    pairing = Pairing(style, 0, HEAD_DIM)
    heads, angle = random_heads(), rope_angles(12, 8)
    before, after = (
        torch.complex(*(c.double() for c in split_pairs(x, pairing))) for x in (heads, rotate(heads, angle, pairing))
    )
    torch.testing.assert_close(after, before * torch.polar(torch.ones_like(angle), angle), rtol=0, atol=1e-6)


@EVERY_STYLE
def test_rotation_agrees_with_transformers(style):
    if style == "half-split":
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
    else:
        from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb
    query, key = random_heads(0, 500), random_heads(1, 500)
    angle = rope_angles(500, 8, torch.float32)
    table = torch.cat((angle, angle), -1) if style == "half-split" else angle.repeat_interleave(2, -1)
    wanted = apply_rotary_pos_emb(query, key, table.cos()[None], table.sin()[None])
    pairings = {name: Pairing(name, 0, HEAD_DIM) for name in STYLES}
    got = {name: (rotate(query, angle, pairing), rotate(key, angle, pairing)) for name, pairing in pairings.items()}
    torch.testing.assert_close(got.pop(style), wanted, rtol=0, atol=1e-6)
    (other,) = got.values()
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(other, wanted, rtol=0, atol=1e-1)


@EVERY_STYLE
@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 4000), m=st.integers(0, 4000), shift=st.integers(1, 4000), seed=st.integers(0, 999))
def test_a_logit_depends_on_the_distance_only(style, n, m, shift, seed):
    pairing = Pairing(style, 0, HEAD_DIM)
    query, key = random_heads(seed, 1)
    angle = rope_angles(8001, pairing.pairs)

    def logit(i: int, j: int) -> torch.Tensor:
        return (rotate(query, angle[i], pairing) * rotate(key, angle[j], pairing)).sum(-1)

    torch.testing.assert_close(logit(n + shift, m + shift), logit(n, m), rtol=0, atol=2e-5)


@EVERY_STYLE
def test_a_logit_depends_on_the_distance(style):
    pairing = Pairing(style, 0, HEAD_DIM)
    query, key = random_heads(0, 1)
    angle = rope_angles(2, pairing.pairs)
    near, far = ((rotate(query, angle[i], pairing) * key).sum(-1) for i in (0, 1))
    assert (near - far).abs().min() > 1e-2


@EVERY_STYLE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rotation_keeps_the_dtype_and_rounds_once(style, dtype):
    pairing = Pairing(style, 4, 8)
    heads, angle = random_heads(dtype=dtype), rope_angles(12, 4)
    turned = rotate(heads, angle, pairing)
    assert turned.dtype == dtype
    assert torch.equal(turned[..., 4:12], rotate(heads.float(), angle, pairing)[..., 4:12].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_rotated_constant_is_flat_within_the_rounding_of_its_dtype(dtype):
    pairing = Pairing("half-split", 0, HEAD_DIM)
    constant = random_heads(0, 1, dtype).expand(2, 3, 2048, HEAD_DIM)
    norms = pair_norms(rotate(constant, rope_angles(2048, 8), pairing), pairing).mT
    assert sequence_power(norms, torch.finfo(dtype).eps).count_nonzero() == 0


@EVERY_STYLE
@pytest.mark.parametrize(("start", "size"), [(0, 18), (8, 10), (16, 2)])
def test_a_block_that_does_not_fit_is_refused(style, start, size):
    pairing = Pairing(style, start, size)
    text = rf"pairing {style}\[{start}:{start + size}\] does not fit into a head of 16 dimensions"
    for function in (split_pairs, pair_norms, lambda heads, p: rotate(heads, torch.zeros(p.pairs), p)):
        with pytest.raises(InputError, match=text):
            function(random_heads(), pairing)


@pytest.mark.parametrize("style", STYLES)
def test_one_angle_for_all_pairs_is_refused(style):
    """It would broadcast: every pair would turn as the first."""
    with pytest.raises(InputError, match=r"angle of shape \(4, 1\) does not fit \(4, 16\) paired as"):
        rotate(torch.ones(4, 16), torch.zeros(4, 1), Pairing(style, 0, 16))
    with pytest.raises(InputError, match=r"angle of shape \(2, 4, 8\) does not fit \(4, 16\) paired as"):
        rotate(torch.ones(4, 16), torch.zeros(2, 4, 8), Pairing(style, 0, 16))


@EVERY_STYLE
def test_pairs_are_turned_and_measured_on_the_device_of_the_heads(style):
    heads, pairing = random_heads().to("meta"), Pairing(style, 4, 8)
    assert rotate(heads, rope_angles(12, 4).to("meta"), pairing).device.type == "meta"
    assert pair_norms(heads, pairing).device.type == "meta"
