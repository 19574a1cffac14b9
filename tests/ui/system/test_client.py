import asyncio
from typing import Any

import pytest

from tests.ui.system.conftest import ESTIMATE, Server, envelope
from ui.client import MissingRoute, ServerError
from ui.system import client


def test_each_call_reads_its_body(server: Server) -> None:
    async def main() -> None:
        assert (await client.overview(server)).models[0].id == "storyteller"
        (served,) = await client.models(server)
        assert (served.status, served.in_flight, served.bytes) == ("served", 3, 412_090_368)
        assert (await client.load(server, "storyteller", {"slots": 4})).status == "loading"
        assert (await client.unload(server, "storyteller", "an other/model")).status == "draining"
        assert (await client.estimate(server, {"model": "m"})).total_bytes == ESTIMATE["total_bytes"]

    asyncio.run(main())
    assert server.calls[2:] == [
        ("POST /admin/models/storyteller", {"slots": 4}),
        ("DELETE /admin/models/storyteller?default=an%20other%2Fmodel", None),
        ("POST /admin/estimate", {"model": "m"}),
    ]


CALLS: dict[str, Any] = {
    "GET /overview": client.overview,
    "GET /admin/models": client.models,
    "POST /admin/models/storyteller": lambda server: client.load(server, "storyteller", {}),
    "POST /admin/estimate": lambda server: client.estimate(server, {"model": "m"}),
}


NO_ROUTE = {
    "GET /overview": "This server cannot tell what it is doing (GET /overview).",
    "GET /admin/models": "This server cannot load and unload models while it runs (/admin/models).",
    "POST /admin/estimate": "This server cannot estimate memory (POST /admin/estimate).",
}
UNREADABLE = "This page cannot read the server's answer to /overview. Is it a Litmus server, and of the same version?"
UNEXPLAINED = "The server answered /overview with status 502 and no explanation."
FAILURES = [
    *((route, (404, envelope("no such route")), MissingRoute, sentence) for route, sentence in NO_ROUTE.items()),
    ("GET /admin/models", (404, "<html>"), MissingRoute, NO_ROUTE["GET /admin/models"]),
    ("POST /admin/estimate", (404, envelope("no model 'm'", "model_not_found", "model")), ServerError, "no model 'm'."),
    ("POST /admin/models/storyteller", (404, envelope("no model 'x'")), ServerError, "no model 'x'."),
    ("GET /overview", (403, envelope("role", "admin_only")), client.NotAdmin, client.NOT_ADMIN),
    ("GET /admin/models", (403, envelope("only from this machine", "local_only")), ServerError, "only from this machine."),
    ("GET /overview", (502, "<html>"), ServerError, UNEXPLAINED),
    ("GET /overview", (200, {"object": "?"}), ServerError, UNREADABLE),
]


@pytest.mark.parametrize(("route", "answer", "kind", "sentence"), FAILURES)
def test_a_failure_is_a_sentence(server: Server, route: str, answer: Any, kind: type[ServerError], sentence: str) -> None:
    server.answers[route] = answer
    with pytest.raises(ServerError) as raised:
        asyncio.run(CALLS[route](server))
    assert (type(raised.value), raised.value.message) == (kind, sentence)
