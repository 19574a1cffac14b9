"""`/v1/fine_tuning/jobs`: OpenAI's. A job is a row in a table when its request is answered; workers find it there."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path as Folder
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from app.errors import InvalidRequest, SetupError, UnknownModel
from app.ledger.recipe import Recipe
from app.schemas.tuning import MAX_SEED, CheckpointList, Job, JobEventList, JobList, JobRequest
from app.settings import ModelSettings
from serve.desk import Desk
from serve.routes.files import owner_of
from serve.routes.state import ERROR_RESPONSES

JOBS = "/v1/fine_tuning/jobs"
ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: ERROR_RESPONSES[status] for status in (400, 413, 415)},
    404: {**ERROR_RESPONSES[404], "description": "no such job or model of this key"},
    409: {**ERROR_RESPONSES[400], "description": "not in the job's present state"},
    429: {**ERROR_RESPONSES[429], "description": "as many jobs of this key are unfinished as may be"},
    503: {**ERROR_RESPONSES[503], "description": "the table of jobs does not answer"},
    507: {**ERROR_RESPONSES[503], "description": "the server's disk is full"},
}
JobId = Annotated[str, Path(max_length=64, examples=["ftjob-abc123"])]
After = Annotated[str | None, Query(max_length=64, description="the id of the last entry of the page before")]
Bases = Callable[[str], ModelSettings | None]  # how a model is served, by its name


def route(path: str, summary: str, *statuses: int) -> dict[str, Any]:
    """`statuses` are those that it answers with beside 400 and 503."""
    return {"path": path, "tags": ["fine-tuning"], "summary": summary, "responses": {each: ERRORS[each] for each in (400, 503, *statuses)}}


def add_tuning(routes: APIRouter, desk: Desk, bases: Bases, parents: Mapping[str, str]) -> None:
    """`parents` has the names of the adapters that are served, and those of their bases."""

    @routes.post(**route(JOBS, "Fine-tune a model on the examples of a file", 404, 413, 415, 429, 507))
    async def create(body: JobRequest, request: Request) -> Job:
        """By LoRA, or QLoRA where the model is served in nf4. The result is served as a model of its own once the job has succeeded."""
        if body.model in parents:
            raise InvalidRequest(f"'{body.model}' is an adapter, and a base is fine-tuned: send '{parents[body.model]}'", param="model")
        recipe = recipe_of(body, bases)
        await asyncio.to_thread(check_quantize, body, recipe)
        job = await desk.ask(lambda ledger: ledger.tunings.create(owner_of(request), body, recipe))
        desk.called.set()
        return job

    @routes.get(**route(JOBS, "The fine-tuning jobs of this key, the latest first", 404))
    async def listed(request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: After = None) -> JobList:
        """`metadata[key]=value` shows only those with that pair."""
        from app.ledger.listing import Page

        pairs = pairs_of(request)
        return await desk.ask(lambda ledger: ledger.tunings.listed(owner_of(request), Page(limit, after), pairs))

    @routes.get(**route(f"{JOBS}/{{fine_tuning_job_id}}", "How far a fine-tuning job is", 404))
    async def retrieve(fine_tuning_job_id: JobId, request: Request) -> Job:
        return await desk.ask(lambda ledger: ledger.tunings.get(owner_of(request), fine_tuning_job_id))

    @routes.post(**route(f"{JOBS}/{{fine_tuning_job_id}}/cancel", "End a fine-tuning job for good", 404, 409, 507))
    async def cancel(fine_tuning_job_id: JobId, request: Request) -> Job:
        return await desk.ask(lambda ledger: ledger.tunings.cancel(owner_of(request), fine_tuning_job_id))

    @routes.post(**route(f"{JOBS}/{{fine_tuning_job_id}}/pause", "Stop a fine-tuning job, to go on later", 404, 409, 507))
    async def pause(fine_tuning_job_id: JobId, request: Request) -> Job:
        return await desk.ask(lambda ledger: ledger.tunings.pause(owner_of(request), fine_tuning_job_id))

    @routes.post(**route(f"{JOBS}/{{fine_tuning_job_id}}/resume", "Go on with a job that was paused", 404, 409, 507))
    async def resume(fine_tuning_job_id: JobId, request: Request) -> Job:
        job = await desk.ask(lambda ledger: ledger.tunings.resume(owner_of(request), fine_tuning_job_id))
        desk.called.set()
        return job


def add_records(routes: APIRouter, desk: Desk) -> None:
    @routes.get(**route(f"{JOBS}/{{fine_tuning_job_id}}/events", "What has happened to a job, the latest first", 404))
    async def events(
        fine_tuning_job_id: JobId, request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 20, after: After = None
    ) -> JobEventList:
        from app.ledger.listing import Page

        return await desk.ask(lambda ledger: ledger.tunings.events(owner_of(request), fine_tuning_job_id, Page(limit, after)))

    @routes.get(**route(f"{JOBS}/{{fine_tuning_job_id}}/checkpoints", "The adapter as it was after the last three epochs", 404))
    async def checkpoints(
        fine_tuning_job_id: JobId, request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 10, after: After = None
    ) -> CheckpointList:
        from app.ledger.listing import Page

        return await desk.ask(lambda ledger: ledger.tunings.checkpoints(owner_of(request), fine_tuning_job_id, Page(limit, after)))


def recipe_of(body: JobRequest, bases: Bases) -> Recipe:
    """Raises `UnknownModel` for a model that is not loaded here."""
    base = bases(body.model)
    if base is None:
        raise UnknownModel(f"model '{body.model}' is not loaded by this server; GET /v1/models lists the models", param="model")
    path = str(Folder(base.path).resolve()) if Folder(base.path).exists() else base.path
    return Recipe(
        model=base.served_name,
        path=path,
        quantize=base.quantize,
        dtype=base.dtype,
        device=base.device,
        context=base.context,
        seed=secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed,
        hyperparameters=body.asked,
        name="",
        chat_template=None if base.chat_template is None else str(Folder(base.chat_template).resolve()),
    )


def check_quantize(body: JobRequest, recipe: Recipe) -> None:
    """What the base's file does not allow is refused before there is a job. Raises `InvalidRequest`."""
    if recipe.hyperparameters.quantize != "nf4":
        return
    from app.tuning.schedule import quantize_of

    try:
        quantize_of(recipe)
    except SetupError as error:
        place = "" if body.hyperparameters is not None else "method.supervised."
        raise InvalidRequest(error.message, param=f"{place}hyperparameters.quantize") from error


def pairs_of(request: Request) -> dict[str, str]:
    """`metadata[key]=value` of the query."""
    found = {key: value for key, value in request.query_params.items() if key.startswith("metadata[") and key.endswith("]")}
    return {key.removeprefix("metadata[")[:-1]: value for key, value in found.items()}
