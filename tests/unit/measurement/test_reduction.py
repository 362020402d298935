"""What a batch comes to stays on the device of its queries and keys until it is fetched."""

from __future__ import annotations

import torch

from architectures import LLAMA
from ropescope.measurement.reduction import Frames, Reducer
from ropescope.model.attention import AttentionCall
from ropescope.model.probing import probe


def test_a_batch_is_reduced_on_the_device_of_its_queries_and_keys() -> None:
    rotation = probe(LLAMA.shared()).layers[0]
    reducer = Reducer({0: rotation}, Frames(16, 8, "hann"), {0: [3]}, stretch=4, ends_early=False)
    reducer.begin(first_window=True)
    reducer(AttentionCall(0, *(torch.empty(2, heads, 48, 16, device="meta") for heads in (4, 2)), {}))
    found = [*reducer.values.values(), *reducer.spectra.values(), *reducer.norms["query"], *reducer.norms["key"]]
    assert len(found) == 6
    assert {values.device.type for values in found} == {"meta"}
