"""`POST /v1/score`: texts to engine jobs, the engine's token statistics to scores and verdicts, and the choice of the calibration."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.engine.events import Columns, Event, Failed, Scored
from app.errors import EngineFailed, InvalidRequest
from app.schemas import Score as ScoreBody
from app.schemas import ScoreFailure, ScoreRequest, ScoreResponse, Timing, Usage, UsedCalibration
from app.scoring.detector import UNCALIBRATED, Detector, ScoreOptions
from app.scoring.prepare import PreparedText
from app.scoring.score import build_score
from app.tokenizer import Tokenizer
from serve.routes.service import Model, Service, cancel_on_disconnect, timeout_of
from serve.routes.state import ERROR_RESPONSES
from serve.wire.requests import used_tier
from serve.workers.fleet import Fleet


def add_score(routes: APIRouter, service: Service, detectors: Mapping[str, Detector]) -> None:
    @routes.post("/v1/score", tags=["score"], summary="Did a model write this?", response_model=ScoreResponse, responses=ERROR_RESPONSES)
    async def score(body: ScoreRequest, request: Request) -> Response:
        start_s = time.perf_counter()
        timeout_s = timeout_of(request, body.timeout_s)
        service.check_user(body.user, "user")
        model = service.model(body.model)
        detector = detectors.get(model.facts.name, UNCALIBRATED)
        options = detector.options(model.facts, body.methods, body.granularity, body.target_fpr, body.calibration == "auto")
        options = replace(options, top_tokens=body.top_tokens, distributions=body.distributions)
        id = f"score-{uuid.uuid4().hex}"
        prepared_texts = await service.run_in_text_pool(request, prepare_texts, id, body, options, model)
        events = await cancel_on_disconnect(request, _run_jobs(service, prepared_texts, model.fleet, timeout_s))

        def compose() -> bytes:
            data = [
                _score_item(index, prepared, events.get(prepared.job.id), options, model.tokenizer)
                for index, prepared in enumerate(prepared_texts)
            ]
            tokens = sum(len(prepared.job.tokens) for prepared in prepared_texts)
            facts, choice = model.facts, options.choice
            return (
                ScoreResponse(
                    id=id,
                    created=int(time.time()),
                    model=facts.name,
                    observer=facts.observer,
                    quantize=facts.quantize,
                    dtype=facts.dtype,
                    system_fingerprint=facts.fingerprint,
                    calibration=UsedCalibration(source=choice.calibration.source if choice.calibration else None, reason=choice.reason),
                    data=data,
                    usage=Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens),
                    timing=Timing(total_s=round(time.perf_counter() - start_s, 6)),
                    service_tier=used_tier(body.service_tier),
                )
                .model_dump_json()
                .encode()
            )

        return Response(await service.run_in_text_pool(request, compose), media_type="application/json")


def prepare_texts(id: str, body: ScoreRequest, options: ScoreOptions, model: Model) -> list[PreparedText]:
    """Raises `InvalidRequest` for a text that cannot be tokenized."""
    preparation = options.preparation(model.tokenizer, model.facts.text_window, used_tier(body.service_tier) or "default")
    preparation = replace(preparation, adapter=model.facts.adapter)
    params = ("text",) if body.texts is None else tuple(f"texts.{index}" for index in range(len(body.texts)))
    return [preparation.prepare(sent, f"{id}/{index}", params[index]) for index, sent in enumerate(body.all)]


async def _run_jobs(service: Service, prepared_texts: list[PreparedText], model: Fleet, timeout_s: float | None) -> dict[str, Event]:
    """The last event of each job, by job id. A text without tokens has no job."""
    jobs = [prepared.job for prepared in prepared_texts if prepared.job.windows]
    async with service.router.open(list(jobs), model, timeout_s) as events:
        return {event.id: event async for event in events}


def _score_item(
    index: int, prepared: PreparedText, event: Event | None, options: ScoreOptions, tokenizer: Tokenizer
) -> ScoreBody | ScoreFailure:
    """One item of the answer. A failing text is an item, too; only errors that concern the whole request are raised."""
    if isinstance(event, Failed):
        if isinstance(event.error, EngineFailed):
            return ScoreFailure(index=index, message=event.error.message, code=event.error.code)
        raise event.error
    try:
        return build_score(index, options, event.columns if isinstance(event, Scored) else Columns(), prepared, tokenizer)
    except InvalidRequest as error:  # target_fpr is not calibrated for texts of this length
        return ScoreFailure(index=index, message=error.message, code=error.code)
