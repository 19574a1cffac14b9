"""The fake server's files, batches and fine-tuning jobs, in OpenAI's shapes. A test sets what there is; what is started comes first."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

SCORE = {"object": "score", "verdict": "machine", "p_machine": {"value": 0.9, "interval": [0.8, 0.95]}, "method": "fast_detect"}
NUMBERS = {"scores": {"fast_detect": 2.5}, "threshold": 1.9, "scored_tokens": 70, "warnings": []}
BODY = {"model": "storyteller", "quantize": "nf4", "dtype": "bfloat16", "data": [{**SCORE, **NUMBERS}]}
OUTPUT = json.dumps({"custom_id": "line 1", "response": {"body": BODY}}) + "\n"


def batch(status: str = "in_progress", **changes: Any) -> dict[str, Any]:
    counts = {"total": 1000, "completed": 409, "failed": 3}
    made = {"id": f"batch_{status}", "object": "batch", "endpoint": "/v1/score", "status": status, "created_at": int(time.time()) - 190}
    return {**made, "request_counts": counts, "errors": None, "output_file_id": None, "error_file_id": None, "metadata": None, **changes}


def tuning(status: str = "running", **changes: Any) -> dict[str, Any]:
    made = {"id": f"ftjob-{status}", "object": "fine_tuning.job", "status": status, "created_at": int(time.time()) - 3700}
    fields = {"model": "storyteller", "fine_tuned_model": None, "error": None, "hyperparameters": {"n_epochs": 3}, "result_files": []}
    return {**made, **fields, **changes}


def metrics(steps: int, total: int) -> list[dict[str, Any]]:
    """Events of a job, the newest first: a falling loss, every fifth step with one of the validation file."""
    made = []
    for step in range(1, steps + 1):
        data = {"step": step, "total_steps": total, "train_loss": 2.0 + 1.5 / step}
        valid = {"valid_loss": 2.2 + 1.4 / step} if step % 5 == 0 else {}
        made.append({"id": f"event-{step}", "type": "metrics", "message": f"Step {step}", "data": {**data, **valid}})
    return made[::-1]


@dataclass
class FakeJobs:
    batches: list[dict[str, Any]] = field(default_factory=list)
    tunings: list[dict[str, Any]] = field(default_factory=list)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # of the uploaded files
    started: list[dict[str, Any]] = field(default_factory=list)  # bodies
    deleted: list[str] = field(default_factory=list)
    has_batches: bool = True
    has_tuning: bool = True
    refusal: str = ""  # of the next start


def problem(message: str, status: int, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": "test"}}, status)


def add_jobs(app: FastAPI, of: Any) -> None:
    """`of.jobs` is the state, another one after each test."""

    @app.post("/v1/files")
    async def upload(request: Request) -> Response:
        async with request.form() as form:
            id = f"file-{len(of.jobs.files)}"
            of.jobs.files[id] = await form["file"].read()  # type: ignore[union-attr]
            of.jobs.names.append(form["file"].filename)  # type: ignore[union-attr, arg-type]
        return JSONResponse({"id": id, "purpose": form["purpose"]})

    @app.get("/v1/files/{id}/content")
    def content(id: str) -> Response:
        headers = {"Content-Disposition": f'attachment; filename="{id}.jsonl"'}
        return Response(of.jobs.files[id], headers=headers) if id in of.jobs.files else problem("there is no such file", 404, "file_id")

    @app.delete("/v1/files/{id}")
    def delete(id: str) -> Response:
        of.jobs.deleted.append(id)
        return JSONResponse({"id": id, "deleted": True})

    _add(app, of, "/v1/batches", "batches", "has_batches", batch)
    _add(app, of, "/v1/fine_tuning/jobs", "tunings", "has_tuning", tuning)

    @app.get("/v1/fine_tuning/jobs/{id}/events")
    def events(id: str, limit: int, after: str | None = None) -> Response:
        found = of.jobs.events.get(id, [])
        start = 0 if after is None else 1 + [event["id"] for event in found].index(after)
        return JSONResponse({"data": found[start : start + limit], "has_more": start + limit < len(found)})


def _add(app: FastAPI, of: Any, path: str, kind: str, switch: str, make: Any) -> None:
    @app.get(path)
    def listed() -> Response:
        return JSONResponse({"data": getattr(of.jobs, kind)}) if getattr(of.jobs, switch) else problem(f"there is no route {path}", 404)

    @app.post(path)
    async def start(request: Request) -> Response:
        body = await request.json()
        if of.jobs.refusal:
            return problem(of.jobs.refusal, 400)
        of.jobs.started.append(body)
        made = make("validating" if kind == "batches" else "queued", metadata=body["metadata"])
        getattr(of.jobs, kind).insert(0, made)
        return JSONResponse(made)

    @app.post(path + "/{id}/{change}")
    def change(id: str, change: str) -> Response:
        job = next(job for job in getattr(of.jobs, kind) if job["id"] == id)
        job["status"] = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}[change]
        return JSONResponse(job)
