import asyncio
import json

import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from app.schemas import ScoreRequest
from loadtest.chaos.exchange import Response
from loadtest.chaos.fuzz import Fuzzed, fault_of, fuzz, missed, table
from loadtest.chaos.malformed import Shot
from loadtest.chaos.server import OwnServer

ERROR = json.dumps({"error": {"message": "m"}}).encode()
GOOD_END = {"exit_code": 0, "orphans": 0}


@pytest.mark.parametrize(
    ("made", "response", "fault"),
    [
        (Shot(0, "bytes"), Response(200, b"{}"), None),
        (Shot(0, "bytes"), Response(400, ERROR), None),
        (Shot(0, "bytes"), Response(503, ERROR), None),
        (Shot(0, "bytes"), Response(500, ERROR), "server error"),
        (Shot(0, "bytes"), Response(502, ERROR), "server error"),
        (Shot(0, "bytes"), Response(400, b"no"), "an error that is not readable"),
        (Shot(0, "bytes"), Response(400, b'{"error": {"message": ""}}'), "an error without a message"),
        (Shot(0, "bytes"), Response(400, b"Invalid HTTP request received."), "an error that is not readable"),
        (Shot(0, "headers"), Response(400, b"Invalid HTTP request received."), None),
        (Shot(0, "method", "HEAD"), Response(405), None),
        (Shot(0, "bytes"), Response(400, b'{"error": {"message": "Traceback"}}'), "an error of the server's own in the answer"),
        (Shot(0, "bytes"), Response(200, b'data: {"error": {"type": "server_error"}}'), "an error of the server's own in the answer"),
        (Shot(0, "bytes"), Response(0), "the connection was closed without an answer"),
        (Shot(0, "bytes"), Response(0, late=True), "no answer within the deadline"),
    ],
)
def test_what_is_a_fault(made, response, fault):
    assert fault_of(made, response) == fault


def test_each_mark_has_its_sentence():
    assert missed(Fuzzed(alive=True, end=GOOD_END), 0) == []
    fuzzed = Fuzzed(aborted="x", end={"exit_code": 1, "orphans": 0})
    for number in (4, 9):
        fuzzed.add(Shot(number, "deep", "POST", "/v1/score?secret"), "500", "server error")
    fuzzed.add(Shot(5, "deep"), "400", None)
    first, second, *others = missed(fuzzed, 2)
    assert first == "The run ended early: x."
    assert second == "2 times: server error; first at number 4, deep, POST /v1/score."
    assert [sentence.split()[:3] for sentence in others] == [["The", "server", "did"], ["2", "tracebacks", "in"], ["The", "server", "did"]]
    assert table(fuzzed).splitlines()[2:4] == ["| deep | 1 | 2 |", "| all | 1 | 2 |"]


def app_with(fault):
    """Answers 500 to a body with a null character if it is to have a fault."""
    app = FastAPI()

    @app.get("/ready")
    async def ready() -> None: ...

    @app.post("/v1/completions", include_in_schema=False)
    async def completions():
        return {"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}], "usage": {}}

    @app.post("/v1/score")
    async def score(body: ScoreRequest):
        return {}

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError):
        return JSONResponse({"error": {"message": "m"}}, 400)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception):
        return JSONResponse({"error": {"message": "m"}}, 500)

    @app.middleware("http")
    async def readable_errors(request: Request, call_next):
        body = await request.body()
        response = await call_next(request)
        status = 500 if fault and b"\\u0000" in body else response.status_code
        return response if status < 400 else JSONResponse({"error": {"message": "m"}}, status)

    return app


class Started(OwnServer):
    def start(self, log=None):
        pass

    def check_running(self):
        pass

    def clean_up(self):
        return GOOD_END


@pytest.mark.parametrize("with_fault", [False, True])
def test_a_server_with_a_fault_is_found_out(run_app, free_port, tmp_path, with_fault):
    with run_app(app_with(with_fault), free_port):
        fuzzed = asyncio.run(fuzz(150, 5, Started([], free_port, tmp_path / "log")))
    assert sum(sum(counted.values()) for counted in fuzzed.statuses.values()) == 150
    assert fuzzed.alive and fuzzed.aborted is None
    assert bool(fuzzed.faults) is with_fault, fuzzed.faults
    assert {fault["what"] for fault in fuzzed.faults} <= {"server error"}
