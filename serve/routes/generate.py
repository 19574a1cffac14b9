"""`POST /generate`: GPT-API's fifteen fields and `min_p` as the engine's sampling, beam search or contrastive search.

Decides which fields may be combined. What each of them does is the engine's matter.
"""

import secrets
import uuid
from dataclasses import replace

from fastapi import APIRouter, Request

from app.engine.events import Delta, Failed
from app.engine.request import BeamSearchParams, ContrastiveSearchParams, Generate, SamplingParams
from app.errors import InvalidRequest
from app.schemas import GenerateRequest, GenerateResponse, SamplingFields
from serve.routes.service import Model, Service, cancel_on_disconnect, timeout_of
from serve.routes.state import ERROR_RESPONSES_NO_USER
from serve.wire.requests import cache_owner, max_new_tokens, sampling_of
from serve.workers.fleet import Fleet
from serve.workers.router import Router

Conflict = tuple[str, bool, str]  # (field, whether another field makes it meaningless, message)
NEUTRAL_VALUES = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
}  # a field with this value has no effect and conflicts with nothing


def add_generate(routes: APIRouter, service: Service) -> None:
    @routes.post("/generate", tags=["chat"], summary="Continue texts, by sampling or by search", responses=ERROR_RESPONSES_NO_USER)
    async def generate(body: GenerateRequest, request: Request) -> GenerateResponse:
        model = service.model(body.model)
        timeout_s = timeout_of(request)
        check_fields(body)
        jobs = await service.run_in_text_pool(request, make_generate_jobs, body, model)
        texts = await cancel_on_disconnect(request, _generate_texts(service.router, jobs, model.fleet, timeout_s))
        prefixes = body.prompts if body.return_prompt else [""] * len(texts)
        return GenerateResponse(gen_text=[prefix + text for prefix, text in zip(prefixes, texts, strict=True)])


def check_fields(body: GenerateRequest) -> None:
    """Raise `InvalidRequest` for a field that another field makes meaningless."""
    for param, conflicts, message in (*_search_conflicts(body), *_sampling_conflicts(body)):
        if conflicts:
            raise InvalidRequest(message, param=param)
    if body.min_length > body.max_length:
        raise InvalidRequest(f"min_length is {body.min_length}, but max_length is {body.max_length}", param="min_length")


def _search_conflicts(body: GenerateRequest) -> tuple[Conflict, ...]:
    beams, contrastive = body.num_beams > 1, bool(body.penalty_alpha)
    return (
        ("do_sample", beams and body.do_sample, f"do_sample and num_beams {body.num_beams} exclude each other: sample or use beam search"),
        (
            "penalty_alpha",
            beams and contrastive,
            f"penalty_alpha and num_beams {body.num_beams} exclude each other: use contrastive search or beam search",
        ),
        (
            "penalty_alpha",
            body.do_sample and contrastive,
            "penalty_alpha and do_sample exclude each other: use contrastive search or sample",
        ),
        (
            "top_k",
            contrastive and (body.top_k or 0) < 2,
            "penalty_alpha needs a top_k of at least 2: contrastive search picks among top_k tokens",
        ),
        ("early_stop", body.early_stop and not beams, "early_stop needs num_beams above 1"),
    )


def _sampling_conflicts(body: GenerateRequest) -> tuple[Conflict, ...]:
    effective = {name for name, neutral in NEUTRAL_VALUES.items() if getattr(body, name) not in {None, neutral}}
    return (
        ("temperature", "temperature" in effective and not body.do_sample, "temperature needs do_sample: true"),
        ("top_p", "top_p" in effective and not body.do_sample, "top_p needs do_sample: true"),
        ("min_p", "min_p" in effective and not body.do_sample, "min_p needs do_sample: true"),
        ("top_k", "top_k" in effective and not body.do_sample and not body.penalty_alpha, "top_k needs do_sample: true, or penalty_alpha"),
    )


def make_generate_jobs(body: GenerateRequest, model: Model) -> list[Generate]:
    """One job per prompt, in their order. A given seed is used for every job; without one, each job gets a random seed."""
    search, sampling = _search(body, model.facts.slots), _sampling(body, model)
    owner, private = cache_owner()
    id = f"generate-{uuid.uuid4().hex}"
    stop = () if body.end_sequence is None else (body.end_sequence,)
    jobs = []
    for index, text in enumerate(body.prompts):
        param = "prompt" if isinstance(body.prompt, str) else f"prompt.{index}"
        if not text:
            raise InvalidRequest(f"{param} is empty", param=param)
        ids = model.tokenizer.encode(text, param)
        max_tokens = max_new_tokens(ids, body.max_length, model.facts, param, "max_length")
        job_sampling = sampling if body.seed is not None else replace(sampling, seed=secrets.randbits(63))
        job = Generate(f"{id}/{index}", ids, max_tokens, job_sampling, stop, search=search, adapter=model.facts.adapter)
        jobs.append(replace(job, owner=owner, private=private))
    return jobs


def _search(body: GenerateRequest, slots: int) -> BeamSearchParams | ContrastiveSearchParams | None:
    """Raises `InvalidRequest` for a search that needs more slots than the model has."""
    if body.num_beams > 1:
        _check_width("num_beams", body.num_beams, slots)
        return BeamSearchParams(body.num_beams, early_stopping=body.early_stop)
    if body.penalty_alpha and body.top_k:
        _check_width("top_k", body.top_k, slots)
        return ContrastiveSearchParams(body.top_k, body.penalty_alpha)
    return None


def _check_width(param: str, width: int, slots: int) -> None:
    if width > slots:
        raise InvalidRequest(f"{param} is {width}, but the model has {slots} slots and this search needs {width} at once", param=param)


def _sampling(body: GenerateRequest, model: Model) -> SamplingParams:
    """Penalties always apply. Temperature and filters, and the model's defaults for them, apply only with do_sample."""
    always = {"bad_words": body.bad_words, "repetition_penalty": body.repetition_penalty, "seed": body.seed, "min_tokens": body.min_length}
    requested = {"temperature": body.temperature, "top_k": body.top_k, "top_p": body.top_p, "min_p": body.min_p}
    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return sampling_of(SamplingFields.model_validate(always | (requested if body.do_sample else greedy)), model.tokenizer, model.facts)


async def _generate_texts(router: Router, jobs: list[Generate], model: Fleet, timeout_s: float | None) -> list[str]:
    """The text of each job, in their order. Raises the error of a job that failed."""
    texts = dict.fromkeys((job.id for job in jobs), "")
    async with router.open([*jobs], model, timeout_s) as events:
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Delta):
                texts[event.id] += event.text
    return list(texts.values())
