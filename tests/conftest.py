"""What tests share: no network, a small saved model, and the real small model loaded once."""

from __future__ import annotations

import os

# before anything imports a hub client
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import ARCHITECTURES, OF_EACH_KIND
from checkout import DATA
from tiny import byte_level_tokenizer, tiny_llama

WIKITEXT = DATA / "wikitext" / "wiki.test.raw"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of the whole matrix of architectures is slow but for one of each kind."""
    for item in items:
        architecture = getattr(item, "callspec", None) and item.callspec.params.get("architecture")
        if architecture in ARCHITECTURES and str(architecture) not in OF_EACH_KIND:
            item.add_marker("slow")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A second thread costs small models more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with its tokenizer; not to be written to."""
    folder: Path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama().save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copies of converted files are shared by the tests of a run, in all its processes, and never the user's."""
    base: Path = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROPESCOPE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def builtin() -> Any:
    """SmolLM2-135M-Instruct in float32 and its tokenizer; converting the file takes most of half a minute."""
    from ropescope.model.loading import load_model

    return load_model("builtin", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """The WikiText test split as published, where the checkout has data beside it."""
    if not WIKITEXT.exists():
        pytest.skip(f"the WikiText test split is not at {WIKITEXT}")
    return WIKITEXT
