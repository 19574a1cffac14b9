"""The clients of `make gpu-check` against a server, and what they see of its worker."""

import asyncio

from gpu.service import Running, crowd
from serving import RunningServer


def test_a_crowd_is_counted_and_the_worker_is_found(api: RunningServer) -> None:
    found = asyncio.run(crowd(api.url, clients=3, rounds=1))
    assert found["answers"] == 3 and found["tokens_per_s"] > 0 and found["ttft_p50_ms"] > 0
    assert api.worker() in Running(api.process, api.url, api.log).workers()
