"""`POST /v1/score`: texts to jobs, columns to scores, and which calibration the verdicts may rest on."""

import time
import uuid
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.engine.request import Columns, Event, Facts, Failed, Score, Scored
from app.errors import EngineFailed, InvalidRequest
from app.schemas import Method, ScoreFailure, ScoreRequest, ScoreResponse, Timing, Usage, UsedCalibration
from app.schemas import Score as ScoreBody
from app.scoring.calibration import PAIRED
from app.scoring.detector import NONE, Detector, Ground
from app.scoring.normalize import normal
from app.scoring.score import Question, Reading, assess
from app.scoring.windows import windows
from app.tokenizer import Encoded, Tokenizer
from serve.routes.service import Model, Service, unless_gone
from serve.routes.state import ERRORS, methods_of
from serve.wire.requests import tier_of

MAX_WINDOWS = 64  # of half a context each: what lies behind is not scored


def add_score(routes: APIRouter, service: Service, detectors: Mapping[str, Detector]) -> None:
    @routes.post("/v1/score", tags=["score"], summary="Did a model write this?", response_model=ScoreResponse, responses=ERRORS)
    async def score(body: ScoreRequest, request: Request) -> Response:
        start_s = time.perf_counter()
        service.check_user(body.user)
        model = service.model(body.model)
        question = _question(body, model.facts, detectors.get(model.facts.name))
        id = f"score-{uuid.uuid4().hex}"
        readings = await service.work(request, readings_of, id, body, question, model)
        ended = await unless_gone(request, _run(service, readings, model.facts.name))

        def compose() -> bytes:
            data = [_scored(index, reading, ended.get(reading.job.id), question) for index, reading in enumerate(readings)]
            tokens = sum(len(reading.job.tokens) for reading in readings)
            facts, ground = model.facts, question.ground
            return (
                ScoreResponse(
                    id=id,
                    created=int(time.time()),
                    model=facts.name,
                    observer=facts.observer,
                    quantize=facts.quantize,
                    dtype=facts.dtype,
                    system_fingerprint=facts.fingerprint,
                    calibration=UsedCalibration(source=ground.calibration.source if ground.calibration else None, reason=ground.reason),
                    data=data,
                    usage=Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens),
                    timing=Timing(total_s=round(time.perf_counter() - start_s, 6)),
                    service_tier=tier_of(body.service_tier),
                )
                .model_dump_json()
                .encode()
            )

        return Response(await service.work(request, compose), media_type="application/json")


def _question(body: ScoreRequest, facts: Facts, detector: Detector | None) -> Question:
    allowed = methods_of(facts)
    for place, method in enumerate(body.methods or ()):
        if method not in allowed:
            param = f"methods.{place}"
            raise InvalidRequest(f"method {method} needs an observer, and none is loaded; {allowed[0]} needs none", param=param)
    methods = tuple(dict.fromkeys(body.methods or allowed[:1]))
    ground = _ground(body, detector, methods, facts)
    if body.target_fpr is not None and ground.calibration is None:
        raise InvalidRequest(f"target_fpr needs a calibration: {ground.reason}", param="target_fpr")
    if body.target_fpr is not None and ground.calibration is not None:
        ground.calibration.check_target(body.target_fpr, ground.methods)
    return Question(methods, ground, body.granularity, body.target_fpr)


def _ground(body: ScoreRequest, detector: Detector | None, methods: Sequence[Method], facts: Facts) -> Ground:
    if body.calibration == "none":
        return Ground(reason="none was asked for")
    return Ground(reason=NONE) if detector is None else detector.choose(methods, facts)


def readings_of(id: str, body: ScoreRequest, question: Question, model: Model) -> list[Reading]:
    collapse = question.ground.calibration is not None and question.ground.calibration.collapse
    observe = any(method in PAIRED for method in question.methods)
    most = MAX_WINDOWS * model.facts.context // 2
    made = []
    for index, sent in enumerate(body.all):
        text = normal(sent, collapse)
        encoded = _read(text.content, f"texts.{index}" if body.text is None else "text", model.tokenizer)
        kept = Encoded(encoded.ids[:most], encoded.offsets[:most])
        parts = windows(len(kept.ids), model.facts.context)
        job = Score(f"{id}/{index}", kept.ids, parts, observe, tier_of(body.service_tier) or "default")
        made.append(Reading(text, kept, job, len(encoded.ids) > most))
    return made


def _read(content: str, param: str, tokenizer: Tokenizer) -> Encoded:
    return tokenizer.read(content, param) if content.strip() else Encoded((), ())


async def _run(service: Service, readings: list[Reading], model: str) -> dict[str, Event]:
    """How each text's job ended, by its id."""
    jobs = [reading.job for reading in readings if reading.job.windows]
    async with service.router.open(list(jobs), model) as ticket:
        return {event.id: event async for event in ticket}


def _scored(index: int, reading: Reading, event: Event | None, question: Question) -> ScoreBody | ScoreFailure:
    if isinstance(event, Failed):
        if isinstance(event.error, EngineFailed):
            return ScoreFailure(index=index, message=event.error.message, code=event.error.code)
        raise event.error
    try:
        return assess(index, question, event.columns if isinstance(event, Scored) else Columns(), reading)
    except InvalidRequest as error:  # a target that is not calibrated for texts of this length
        return ScoreFailure(index=index, message=error.message, code=error.code)
