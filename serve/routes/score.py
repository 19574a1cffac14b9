"""`POST /v1/score`: texts to engine jobs, the engine's token statistics to scores and verdicts, and the choice of the calibration."""

import time
import uuid
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.engine.request import Columns, Event, Facts, Failed, Score, Scored
from app.errors import EngineFailed, InvalidRequest
from app.schemas import Method, ScoreFailure, ScoreRequest, ScoreResponse, Timing, Usage, UsedCalibration
from app.schemas import Score as ScoreBody
from app.scoring.calibration import OBSERVER_METHODS
from app.scoring.detector import NO_CALIBRATION, CalibrationChoice, Detector
from app.scoring.normalize import normalize
from app.scoring.score import PreparedText, ScoreOptions, build_score
from app.scoring.windows import windows
from app.tokenizer import Encoded, Tokenizer
from serve.routes.service import Model, Service, cancel_on_disconnect
from serve.routes.state import ERROR_RESPONSES, methods_of
from serve.wire.requests import used_tier

MAX_WINDOWS = 64  # of half a context each; what follows them is not scored, and the answer says `truncated`


def add_score(routes: APIRouter, service: Service, detectors: Mapping[str, Detector]) -> None:
    @routes.post("/v1/score", tags=["score"], summary="Did a model write this?", response_model=ScoreResponse, responses=ERROR_RESPONSES)
    async def score(body: ScoreRequest, request: Request) -> Response:
        start_s = time.perf_counter()
        service.check_user(body.user, "user")
        model = service.model(body.model)
        options = _options(body, model.facts, detectors.get(model.facts.name))
        id = f"score-{uuid.uuid4().hex}"
        prepared_texts = await service.run_in_text_pool(request, prepare_texts, id, body, options, model)
        events = await cancel_on_disconnect(request, _run_jobs(service, prepared_texts, model.facts.name))

        def compose() -> bytes:
            data = [_score_item(index, prepared, events.get(prepared.job.id), options) for index, prepared in enumerate(prepared_texts)]
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


def _options(body: ScoreRequest, facts: Facts, detector: Detector | None) -> ScoreOptions:
    allowed = methods_of(facts)
    for index, method in enumerate(body.methods or ()):
        if method not in allowed:
            param = f"methods.{index}"
            raise InvalidRequest(
                f"method {method} needs an observer, but no observer model is loaded; {allowed[0]} needs none", param=param
            )
    methods = tuple(dict.fromkeys(body.methods or allowed[:1]))
    choice = _choose_calibration(body, detector, methods, facts)
    if body.target_fpr is not None and choice.calibration is None:
        raise InvalidRequest(f"target_fpr needs a calibration: {choice.reason}", param="target_fpr")
    if body.target_fpr is not None and choice.calibration is not None:
        choice.calibration.check_target(body.target_fpr, choice.methods)
    return ScoreOptions(methods, choice, body.granularity, body.target_fpr)


def _choose_calibration(body: ScoreRequest, detector: Detector | None, methods: Sequence[Method], facts: Facts) -> CalibrationChoice:
    if body.calibration == "none":
        return CalibrationChoice(reason="the request asked for no calibration")
    return CalibrationChoice(reason=NO_CALIBRATION) if detector is None else detector.choose(methods, facts)


def prepare_texts(id: str, body: ScoreRequest, options: ScoreOptions, model: Model) -> list[PreparedText]:
    collapse = options.choice.calibration is not None and options.choice.calibration.collapse
    observe = any(method in OBSERVER_METHODS for method in options.methods)
    max_tokens = MAX_WINDOWS * model.facts.context // 2
    prepared_texts = []
    for index, sent in enumerate(body.all):
        text = normalize(sent, collapse)
        encoded = _encode(text.content, f"texts.{index}" if body.text is None else "text", model.tokenizer)
        kept = Encoded(encoded.ids[:max_tokens], encoded.offsets[:max_tokens])
        text_windows = windows(len(kept.ids), model.facts.context)
        job = Score(f"{id}/{index}", kept.ids, text_windows, observe, used_tier(body.service_tier) or "default")
        prepared_texts.append(PreparedText(text, kept, job, len(encoded.ids) > max_tokens))
    return prepared_texts


def _encode(content: str, param: str, tokenizer: Tokenizer) -> Encoded:
    return tokenizer.encode_with_offsets(content, param) if content.strip() else Encoded((), ())


async def _run_jobs(service: Service, prepared_texts: list[PreparedText], model: str) -> dict[str, Event]:
    """The last event of each job, by job id. A text without tokens has no job."""
    jobs = [prepared.job for prepared in prepared_texts if prepared.job.windows]
    async with service.router.open(list(jobs), model) as events:
        return {event.id: event async for event in events}


def _score_item(index: int, prepared: PreparedText, event: Event | None, options: ScoreOptions) -> ScoreBody | ScoreFailure:
    """One item of the answer. A failing text is an item, too; only errors that concern the whole request are raised."""
    if isinstance(event, Failed):
        if isinstance(event.error, EngineFailed):
            return ScoreFailure(index=index, message=event.error.message, code=event.error.code)
        raise event.error
    try:
        return build_score(index, options, event.columns if isinstance(event, Scored) else Columns(), prepared)
    except InvalidRequest as error:  # target_fpr is not calibrated for texts of this length
        return ScoreFailure(index=index, message=error.message, code=error.code)
