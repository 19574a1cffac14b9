"""CORS: which web pages may call the server, and that they can read its errors."""

from collections.abc import Sequence

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Forbidden, NotReady
from serve.middleware import install

PAGE, OTHER = "https://page.example", "https://other.example"
LIMIT = 100


class Body(BaseModel):
    number: int


def create(origins: Sequence[str]) -> TestClient:
    app = FastAPI()
    install(app, LIMIT, origins)

    @app.post("/take")
    async def take(body: Body) -> int:
        return body.number

    @app.get("/busy")
    async def busy() -> None:
        raise NotReady("not now")

    @app.get("/banned")
    async def banned() -> None:
        raise Forbidden("no")

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/take", '{"number": 1}', 200),
        ("POST", "/take", '{"number": "x"}', 400),
        ("POST", "/take", "{", 400),
        ("POST", "/take", " " * (LIMIT + 1), 413),
        ("GET", "/nowhere", None, 404),
        ("GET", "/take", None, 405),
        ("GET", "/busy", None, 503),
        ("GET", "/banned", None, 403),
    ],
)
def test_an_allowed_origin_reads_every_answer_and_another_origin_none(method: str, path: str, body: str | None, status: int) -> None:
    client, headers = create([PAGE]), {"Content-Type": "application/json"}
    allowed = client.request(method, path, content=body, headers={**headers, "Origin": PAGE})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (status, PAGE)
    exposed = allowed.headers["access-control-expose-headers"].split(", ")
    assert exposed[:4] == ["Retry-After", "X-Litmus-Ignored", "X-Request-Id", "Request-Id"]
    assert exposed[4:7] == ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"]
    assert "access-control-allow-credentials" not in allowed.headers
    refused = client.request(method, path, content=body, headers={**headers, "Origin": OTHER})
    assert refused.status_code == status and "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("origin", "method", "header", "status"),
    [
        (PAGE, "POST", "authorization, content-type", 200),
        (PAGE, "GET", "authorization", 200),
        (PAGE, "DELETE", "authorization", 200),
        (PAGE, "PUT", "authorization", 400),
        (PAGE, "POST", "content-type, x-stainless-lang", 200),  # what the official client sends
        (OTHER, "POST", "authorization", 400),
    ],
)
def test_preflight_requests_are_answered(origin: str, method: str, header: str, status: int) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": header}
    response = create([PAGE]).options("/take", headers=headers)
    assert response.status_code == status
    assert response.headers.get("access-control-allow-origin") == (None if origin == OTHER else PAGE)


def test_a_star_allows_every_origin_and_an_empty_list_none() -> None:
    headers = {"Origin": OTHER, "Access-Control-Request-Method": "POST"}
    assert create(["*"]).get("/busy", headers=headers).headers["access-control-allow-origin"] == "*"
    response = create([]).options("/take", headers=headers)
    assert response.status_code == 405 and not [name for name in response.headers if name.startswith("access-control")]


def test_an_allowed_origin_reads_what_admission_refuses_and_the_last_of_its_middlewares_is_asked_first() -> None:
    class Refusing:
        def __init__(self, app: ASGIApp, status: int) -> None:
            self.status = status

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await JSONResponse({}, self.status)(scope, receive, send)

    app = FastAPI()
    install(app, LIMIT, [PAGE], before_body=[Middleware(Refusing, status=429), Middleware(Refusing, status=500)])
    response = TestClient(app).post("/take", content="x" * 1000, headers={"Origin": PAGE})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (429, PAGE)
