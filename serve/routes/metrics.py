"""`GET /metrics`: everything that is counted or can be looked up, in Prometheus's text format."""

import time
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import Metric

from app.ledger.totals import Totals
from serve.observe.batches import batch_families, batch_totals
from serve.observe.gpu import GPU, GPUs, gpu_families
from serve.observe.state import EngineReports, engine_families, process_families, replica_families
from serve.workers.router import Router


class Scrape:
    """What Prometheus gets when it asks once."""

    def __init__(self, router: Router, reports: EngineReports, gpus: list[GPU], batches: Totals | None) -> None:
        self._router, self._reports, self._gpus, self._batches = router, reports, gpus, batches

    def collect(self) -> Iterator[Metric]:
        yield from self._router.observer.collect()
        yield from replica_families(self._router)
        yield from engine_families(self._router, self._reports, time.monotonic())
        yield from process_families(self._router)
        yield from batch_families(self._batches)
        yield from gpu_families(self._gpus)


def add_metrics(routes: APIRouter, router: Router) -> None:
    reports, gpus = EngineReports(router), GPUs()

    @routes.get("/metrics", tags=["state"], summary="Numbers for Prometheus", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Names are vLLM's where vLLM has the metric, with the prefix `litmus:`."""
        await reports.refresh()
        batches = await batch_totals(getattr(request.app.state, "desk", None))
        scrape = Scrape(router, reports, await gpus.read(), batches)
        return Response(generate_latest(scrape), media_type=CONTENT_TYPE_PLAIN_0_0_4)
