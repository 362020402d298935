"""The face of the package: names, version, and how what it returns shows itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ropescope as rs
from architectures import LLAMA, tokens
from synthetic import synthetic_result


def test_only_public_names_are_listed_and_all_of_them_are_there() -> None:
    assert dir(rs) == sorted(rs.__all__) and "annotations" not in dir(rs)
    assert all(getattr(rs, name) is not None for name in dir(rs))
    with pytest.raises(AttributeError, match="has no attribute 'mesure'"):
        _ = rs.mesure  # type: ignore[attr-defined]


def test_every_error_is_public_and_has_one_root() -> None:
    errors = [getattr(rs, name) for name in dir(rs) if name.endswith("Error")]
    assert len(errors) >= 10 and all(issubclass(error, rs.RopescopeError) for error in errors)


def test_the_version_is_the_distributions_and_importing_loads_nothing_heavy() -> None:
    program = (
        "import ropescope, sys; print(ropescope.__version__, {'torch', 'transformers', 'xarray'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{rs.__version__} set()\n"


def test_a_mask_shows_itself_in_a_few_lines() -> None:
    mask = rs.select(synthetic_result(), "spectrum_fe < 0.2 and layer >= 0")
    assert len(repr(mask)) < 300 and repr(mask).startswith("<PairMask spectrum_fe < 0.2 and layer >= 0: ")
    assert "spectrum_fe &lt; 0.2" in mask._repr_html_() and mask._repr_html_().count("<tr>") == 5


def test_cards_and_perplexities_show_their_text_in_a_notebook() -> None:
    model = LLAMA.shared()
    assert rs.probe(model)._repr_html_() == f"<pre>{rs.probe(model)}</pre>"
    assert rs.perplexity(model, tokens(1))._repr_html_().startswith("<pre>perplexity ")
    assert rs.Table(["<a>"], [["&"]], "t")._repr_html_() == (
        "<table><caption>t</caption><tr><th>&lt;a&gt;</th></tr><tr><td>&amp;</td></tr></table>"
    )
