"""`POST /generate`: GPT-API's fifteen fields as sampling, beam search and contrastive search of the engine.

Says which of them go together; what each does, the engine knows.
"""

import secrets
import uuid
from dataclasses import replace

from fastapi import APIRouter, Request

from app.engine.request import Beams, Contrast, Delta, Failed, Generate, Sampling
from app.errors import InvalidRequest
from app.schemas import GenerateRequest, GenerateResponse, SamplingFields
from app.tokenizer import Tokenizer
from serve.routes.service import Model, Service, unless_gone
from serve.routes.state import ANONYMOUS
from serve.wire.requests import room, sampling_of
from serve.workers.router import Router

Clash = tuple[str, bool, str]  # a field, whether something else leaves it nothing to do, and what to say then
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}  # asks for nothing, whatever else is asked for


def add_generate(routes: APIRouter, service: Service) -> None:
    @routes.post("/generate", tags=["chat"], summary="Continue texts, by sampling or by search", responses=ANONYMOUS)
    async def generate(body: GenerateRequest, request: Request) -> GenerateResponse:
        model = service.model(body.model)
        check(body)
        jobs = await service.work(request, jobs_of, body, model)
        texts = await unless_gone(request, _texts(service.router, jobs, model.facts.name))
        opened = body.prompts if body.return_prompt else [""] * len(texts)
        return GenerateResponse(gen_text=[prompt + text for prompt, text in zip(opened, texts, strict=True)])


def check(body: GenerateRequest) -> None:
    """Raises `InvalidRequest` where one field leaves nothing to do for another."""
    for param, wrong, says in (*_of_searches(body), *_of_draws(body)):
        if wrong:
            raise InvalidRequest(says, param=param)
    if body.min_length > body.max_length:
        raise InvalidRequest(f"min_length is {body.min_length}, but max_length is {body.max_length}", param="min_length")


def _of_searches(body: GenerateRequest) -> tuple[Clash, ...]:
    beams, contrastive = body.num_beams > 1, bool(body.penalty_alpha)
    return (
        ("do_sample", beams and body.do_sample, f"do_sample draws, num_beams {body.num_beams} searches: ask for one of them"),
        ("penalty_alpha", beams and contrastive, f"penalty_alpha is of contrastive search, num_beams {body.num_beams} of beam search"),
        ("penalty_alpha", body.do_sample and contrastive, "penalty_alpha is of contrastive search, do_sample draws: ask for one of them"),
        ("top_k", contrastive and (body.top_k or 0) < 2, "penalty_alpha needs a top_k of at least 2: the tokens to choose from"),
        ("early_stop", body.early_stop and not beams, "early_stop needs num_beams above 1"),
    )


def _of_draws(body: GenerateRequest) -> tuple[Clash, ...]:
    given = {name for name, neutral in NEUTRAL.items() if getattr(body, name) not in {None, neutral}}
    return (
        ("temperature", "temperature" in given and not body.do_sample, "temperature needs do_sample: true"),
        ("top_p", "top_p" in given and not body.do_sample, "top_p needs do_sample: true"),
        ("top_k", "top_k" in given and not body.do_sample and not body.penalty_alpha, "top_k needs do_sample: true, or penalty_alpha"),
    )


def jobs_of(body: GenerateRequest, model: Model) -> list[Generate]:
    """One for each prompt, in their order. With a seed all have the same, else each its own."""
    search, sampling = _search(body, model.facts.slots), _sampling(body, model.tokenizer)
    id = f"generate-{uuid.uuid4().hex}"
    stop = () if body.end_sequence is None else (body.end_sequence,)
    made = []
    for index, text in enumerate(body.prompts):
        param = "prompt" if isinstance(body.prompt, str) else f"prompt.{index}"
        if not text.strip():
            raise InvalidRequest(f"{param} is empty or blank", param=param)
        ids = model.tokenizer.encode(text, param)
        most = room(ids, body.max_length, model.facts, param, "max_length")
        drawn = sampling if body.seed is not None else replace(sampling, seed=secrets.randbits(63))
        made.append(Generate(f"{id}/{index}", ids, most, drawn, stop, search=search))
    return made


def _search(body: GenerateRequest, slots: int) -> Beams | Contrast | None:
    """Raises `InvalidRequest` for one that needs more slots than there are."""
    if body.num_beams > 1:
        _check_width("num_beams", body.num_beams, slots)
        return Beams(body.num_beams, early_stopping=body.early_stop)
    if body.penalty_alpha and body.top_k:
        _check_width("top_k", body.top_k, slots)
        return Contrast(body.top_k, body.penalty_alpha)
    return None


def _check_width(param: str, width: int, slots: int) -> None:
    if width > slots:
        raise InvalidRequest(f"{param} is {width}, but the model has {slots} slots and this search needs {width} at once", param=param)


def _sampling(body: GenerateRequest, tokenizer: Tokenizer) -> Sampling:
    """Penalties as everywhere; temperature and filters only where tokens are drawn, the model's own defaults for them as well."""
    shared = {"bad_words": body.bad_words, "repetition_penalty": body.repetition_penalty, "seed": body.seed, "min_tokens": body.min_length}
    drawn = {"temperature": body.temperature, "top_k": body.top_k, "top_p": body.top_p}
    plain = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return sampling_of(SamplingFields.model_validate(shared | (drawn if body.do_sample else plain)), tokenizer)


async def _texts(router: Router, jobs: list[Generate], model: str) -> list[str]:
    """Of each job its text. Raises the error of one that failed."""
    texts = dict.fromkeys((job.id for job in jobs), "")
    async with router.open([*jobs], model) as ticket:
        async for event in ticket:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Delta):
                texts[event.id] += event.text
    return list(texts.values())
