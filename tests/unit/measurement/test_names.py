"""What pictures and pages call a file: its model, and more where that does not tell."""

from __future__ import annotations

import json

import pytest

from ropescope.analysis.comparison_in_words import same_places
from ropescope.base.errors import InputError
from ropescope.evaluation.claims.judging import claims
from ropescope.measurement.names import called, labelled, model_name, names_of
from ropescope.measurement.results import provenance
from synthetic import synthetic_result


def made(model="org/model", corpus="wikitext", length=512):
    result = synthetic_result()
    facts = provenance(result)
    facts["model"]["id"] = model
    facts["windows"] = {"corpus": corpus, "length": length}
    result.attrs["provenance"] = json.dumps(facts)
    return result


def test_different_models_are_called_by_their_names_without_the_way_to_them():
    found = names_of({"q": made("/folder/models/gemma-3-270m"), "r": made("/folder/m.gguf"), "s": made("org/name")})
    assert list(found.values()) == ["gemma-3-270m", "m", "org/name"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("org/model", "org/model"),
        ("/folder/model", "model"),
        ("../models/model", "model"),
        ("./model", "model"),
        ("~/models/model", "model"),
        ("../../models/model-Q4_K_M.gguf", "model-Q4_K_M"),
        ("models/model-0.5b.gguf", "model-0.5b"),
        ("model-0.5b", "model-0.5b"),
    ],
)
def test_what_can_only_be_a_path_is_left_out_of_every_name(given: str, name: str) -> None:
    result = made(given)
    assert model_name(result) == name
    assert f" claims on {name}, " in claims({"it": result}).summary()
    (section,) = same_places({"it": result, "other": made(given, corpus="c4")})
    assert ["model", name, name] in [list(row) for row in section.tables[0].rows]


def test_one_model_on_two_texts_is_called_by_the_text_and_of_two_lengths_with_the_length():
    texts = {"a": made(), "b": made(corpus="/data/c4.txt")}
    assert list(names_of(texts).values()) == ["wikitext", "c4.txt"]
    lengths = {"a": made(), "b": made(length=1024)}
    assert list(names_of(lengths).values()) == ["wikitext, 512 tokens", "wikitext, 1024 tokens"]


def test_of_several_models_the_text_stands_beside_the_model():
    several = {"a": made(), "b": made(corpus="c4"), "c": made("other")}
    assert list(names_of(several).values()) == ["org/model, wikitext", "org/model, c4", "other, wikitext"]


def test_the_same_twice_or_without_a_model_keeps_the_names_of_the_files():
    assert names_of({"a": made(), "b": made()}) == {"a": "a", "b": "b"}
    assert names_of({"a": made(None)}) == {"a": "a"}


def test_the_text_is_named_where_it_is_asked_for():
    assert names_of({"a": made()}, text=True) == {"a": "org/model, wikitext"}


def test_a_label_names_the_content_and_leaves_the_given_one():
    first = made()
    found = called({"a": first}, ["Model 1"])
    assert list(found) == ["Model 1"] and model_name(found["Model 1"]) == "Model 1"
    assert model_name(first) == "org/model" and model_name(labelled(first, "x")) == "x"


@pytest.mark.parametrize(
    ("labels", "words"), [(["one"], "got 1 labels for 2 files"), (["one", "one"], "'one' twice for files of one kind")]
)
def test_labels_that_do_not_fit_are_refused(labels, words):
    with pytest.raises(InputError, match=words):
        names_of({"a": made(), "b": made()}, labels)
