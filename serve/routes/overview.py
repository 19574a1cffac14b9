"""`GET /overview`: what the models, their engines, the processes and the GPUs do, in one JSON body. The page draws it."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import psutil
from fastapi import APIRouter

from app.engine.events import Report, SlotReport
from app.engine.notices import Waiting
from app.schemas import SlotState, WaitingState
from app.schemas.overview import EngineState, GPUUse, LatencySummary, ModelOverview, Overview, ProcessUse
from serve.observe.gpu import GPU, GPUs
from serve.observe.state import EngineReports, Place, places, processes
from serve.workers.router import Router


def add_overview(routes: APIRouter, router: Router, started: int) -> None:
    reports, gpus = EngineReports(router), GPUs()

    @routes.get("/overview", tags=["state"], summary="What is the server doing?")
    async def overview() -> Overview:
        """Models, slots, queues, tokens, times to the first token, processes and GPUs: what the System tab of the page draws."""
        await reports.refresh()
        return overview_of(router, reports, await gpus.read(), started)


def overview_of(router: Router, reports: EngineReports, gpus: Sequence[GPU], started: int) -> Overview:
    memory = psutil.virtual_memory()
    return Overview(
        at=time.time(),
        started=started,
        models=[_model(router, reports, model) for model in router.models],
        processes=list(_process_uses(router)),
        gpus=[GPUUse(index=gpu.index, used_bytes=gpu.used_bytes, total_bytes=gpu.total_bytes, utilization=gpu.utilization) for gpu in gpus],
        cpus=len(os.sched_getaffinity(0)),
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
    )


def _model(router: Router, reports: EngineReports, model: str) -> ModelOverview:
    members = [place for place in places(router) if place.model == model]
    replicas = [place.replica for place in members]
    facts = next((replica.facts for replica in replicas if replica.facts is not None), None)
    tokens = router.observer.tokens(model)
    return ModelOverview(
        id=model,
        status=router.statuses[model],
        replicas=len(replicas),
        alive=sum(replica.worker is not None for replica in replicas),
        in_flight=sum(replica.load for replica in replicas),
        context=None if facts is None else facts.context,
        generated_tokens=tokens.generated,
        prompt_tokens=tokens.prompt,
        scored_tokens=tokens.scored,
        first_token=_first_token(router, model),
        engines=list(_engines(reports, members)),
    )


def _first_token(router: Router, model: str) -> LatencySummary | None:
    summary = router.observer.first_tokens(model)
    return None if summary is None else LatencySummary(count=summary.count, p50_s=summary.p50, p90_s=summary.p90, p99_s=summary.p99)


def _engines(reports: EngineReports, members: Sequence[Place]) -> Iterator[EngineState]:
    for place in members:
        latest = reports.of(place.replica)
        if latest is not None:
            yield engine_state(place.number, latest.report, max(0.0, time.monotonic() - latest.at_s))


def engine_state(replica: int, report: Report, age_s: float) -> EngineState:
    slots, waiting = [slot_state(slot) for slot in report.slots], [waiting_state(event) for event in report.waiting]
    return EngineState(replica=replica, age_s=round(age_s, 3), slots=slots, waiting=waiting, texts=report.texts)


def slot_state(slot: SlotReport) -> SlotState:
    return SlotState(
        slot=slot.slot,
        stage=slot.stage,
        request=slot.request,
        prompt_tokens=slot.prompt_tokens,
        cached_tokens=slot.cached_tokens,
        generated_tokens=slot.generated_tokens,
        drafted_tokens=slot.drafted_tokens,
        accepted_tokens=slot.accepted_tokens,
    )


def waiting_state(event: Waiting) -> WaitingState:
    return WaitingState(request=event.id, position=event.position, eta_s=event.wait_s)


def _process_uses(router: Router) -> Iterator[ProcessUse]:
    """One that has just ended is left out."""
    for name, place, process in processes(router):
        with contextlib.suppress(psutil.Error), process.oneshot():
            times, resident = process.cpu_times(), process.memory_info().rss
            yield ProcessUse(
                process=cast(Any, name),
                model=None if place is None else place.model,
                replica=None if place is None else place.number,
                cpu_s=times.user + times.system,
                resident_bytes=resident,
            )
