"""The KV cache takes memory as it is used, and no longer than its model is there."""

import gc
import weakref

import psutil
import torch
from tinymodels import tiny

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.keyvalues import KeyValues


def test_a_cache_on_a_cpu_takes_memory_only_where_it_is_written() -> None:
    cache = KeyValues()
    before = psutil.Process().memory_info().rss
    cache.allocate({0: (4, 64, 64), 1: (4, 64, 64)}, 2048, 64, torch.bfloat16, torch.device("cpu"))
    assert sum(tensor.nbytes for tensor in cache.tensors) == 2**28
    assert psutil.Process().memory_info().rss - before < 2**24
    cache.keys[0][5, :, :50] = 1
    assert float(cache.keys[0].sum()) == 4 * 50 * 64 and not cache.keys[1][5].any()


def test_a_cache_goes_with_its_model() -> None:
    flat = create_flat_model(tiny("Llama"), CacheLimits(2, 64))
    cache = weakref.ref(flat.attention.slots)
    del flat
    gc.collect()
    assert cache() is None
