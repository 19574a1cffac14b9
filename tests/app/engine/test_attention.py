"""The KV cache takes memory as it is used."""

import psutil
import torch

from app.engine.attention import SlotAttention


def test_a_cache_on_a_cpu_takes_memory_only_where_it_is_written() -> None:
    attention = SlotAttention()
    attention.shapes = {0: (4, 64, 64), 1: (4, 64, 64)}
    before = psutil.Process().memory_info().rss
    attention.allocate(2048, 64, torch.bfloat16, torch.device("cpu"))
    assert sum(cache.nbytes for cache in (*attention.keys.values(), *attention.values.values())) == 2**28
    assert psutil.Process().memory_info().rss - before < 2**24
    attention.keys[0][5, :, :50] = 1
    assert float(attention.keys[0].sum()) == 4 * 50 * 64 and not attention.keys[1][5].any()
