"""What an upstream is taken to be, and what is then refused. The cards are those of real servers, shortened."""

import asyncio
import json

import httpx
import pytest

from app.errors import InvalidRequest
from app.settings import ModelSettings
from serve.upstream.dialects import our_form, own_form
from serve.upstream.probe import Abilities, Unreachable, explore, find_model
from serve.upstream.refusal import cannot
from serve.upstream.upstream import LAST_WAIT_S, Upstream

LLAMA = {"id": "/m/x.gguf", "aliases": ["x"], "owned_by": "llamacpp", "meta": {"n_ctx": 2048, "n_ctx_train": 8192}}
VLLM = {"id": "org/x", "owned_by": "vllm", "max_model_len": 32768}
LITMUS = {"id": "x", "owned_by": "litmus", "context": 1024, "max_model_len": 1024, "capabilities": ["chat"]}
HOSTED = {"id": "x", "object": "model", "created": 1, "owned_by": None}


def http_of(*cards, health=200, status=200, routes=(), props=None):
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(400 if request.url.path in routes else 404)
        if request.url.path == "/health":
            return httpx.Response(health)
        if request.url.path == "/props":
            return httpx.Response(200, json=props)
        return httpx.Response(status, json={"data": list(cards)} if cards else {"object": "list"})

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://far")


@pytest.mark.parametrize(
    ("card", "kind", "context"), [(LLAMA, "llama.cpp", 2048), (VLLM, "vllm", 32768), (LITMUS, "litmus", 1024), (HOSTED, "unknown", None)]
)
def test_the_kind_and_the_context_are_those_of_its_card(card, kind, context):
    found = asyncio.run(find_model(http_of(card), None, "ours"))
    assert (found.kind, found.context, found.model) == (kind, context, card["id"])


@pytest.mark.parametrize(
    ("asked", "name", "cards", "chosen"),
    [
        ("org/x", "ours", (HOSTED, VLLM), "org/x"),
        (None, "org/x", (HOSTED, VLLM), "org/x"),
        ("x", "ours", (LLAMA,), "/m/x.gguf"),  # an alias
        (None, "ours", (VLLM,), "org/x"),
        (None, "ours", ({**VLLM, "root": "/m"}, {**VLLM, "id": "z", "root": "/m"}), "org/x"),  # one model by two names
    ],
)
def test_the_model_is_found_by_its_name_there(asked, name, cards, chosen):
    assert asyncio.run(find_model(http_of(*cards), asked, name)).model == chosen


@pytest.mark.parametrize(
    ("asked", "http", "says"),
    [
        ("y", http_of(VLLM), "it has no model 'y'"),
        (None, http_of(VLLM, HOSTED), "set upstream_model to one of the 2"),
        (None, http_of(VLLM, health=503), "loading or shutting down"),
        (None, http_of(VLLM, status=401), "refuses the key"),
        (None, http_of(VLLM, status=500), "says 500"),
        (None, http_of(), "does not list models"),
    ],
)
def test_why_it_cannot_be_used(asked, http, says):
    with pytest.raises(Unreachable, match=says):
        asyncio.run(find_model(http, asked, "ours"))


def test_routes_and_tools_are_found_out():
    found = asyncio.run(explore(http_of(routes={"/v1/responses", "/v1/score"}), Abilities("vllm", "x")))
    assert (found.routes, found.tools) == ({"/v1/responses"}, None)
    for said in (True, False):
        props = {"chat_template_caps": {"supports_tools": said}}
        assert asyncio.run(explore(http_of(props=props), Abilities("llama.cpp", "x"))).tools is said
    scores = http_of(routes={"/v1/score", "/generate"})
    assert asyncio.run(explore(scores, Abilities("litmus", "x", card=LITMUS))).routes == {"/generate"}
    assert "/v1/score" in asyncio.run(explore(scores, Abilities("litmus", "x", card={"capabilities": ["score"]}))).routes


def test_one_that_stays_away_for_hours_is_looked_for_all_the_time(monkeypatch):
    away, waits = Upstream("ours", ModelSettings(upstream="http://far", name="ours")), []

    async def look():
        pass

    async def wait(seconds):
        waits.append(seconds)
        if len(waits) == 1100:
            raise asyncio.CancelledError

    monkeypatch.setattr(away, "_look", look)
    monkeypatch.setattr(away, "_wait", wait)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(away.watch())
    assert waits[-1] == LAST_WAIT_S


def upstream(kind, tools=None):
    created = Upstream("ours", ModelSettings(upstream="http://far", name="ours"))
    created.abilities = Abilities(kind, "x", routes=frozenset({"/r", "/tokenize", "/v1/responses"}), tools=tools)
    return created


@pytest.mark.parametrize(
    ("kind", "tools", "path", "body", "param"),
    [
        ("llama.cpp", None, "/r", {"bad_words": ["a"]}, "bad_words"),
        ("llama.cpp", None, "/r", {"min_tokens": 3}, "min_tokens"),
        ("llama.cpp", False, "/r", {"tools": [{}]}, "tools"),
        ("llama.cpp", None, "/tokenize", {"messages": []}, "messages"),
        ("vllm", None, "/r", {"grammar": "root ::= x"}, "grammar"),
        ("other", None, "/v1/responses", {"background": True}, "background"),
        ("other", None, "/elsewhere", {}, "model"),
        ("llama.cpp", None, "/r", {"bad_words": [], "min_tokens": 0, "echo": False, "best_of": 1, "suffix": None, "grammar": "x"}, None),
        ("llama.cpp", True, "/r", {"tools": [{}]}, None),
        ("vllm", None, "/r", {"bad_words": ["a"], "grammar": ""}, None),
        ("other", None, "/r", {"bad_words": ["a"], "grammar": "x"}, None),
    ],
)
def test_what_a_kind_would_drop_is_refused(kind, tools, path, body, param):
    refused = cannot(upstream(kind, tools), path, body)
    assert (refused and refused.param) == param
    assert refused is None or isinstance(refused, InvalidRequest)


def test_a_schema_beside_json_object_is_one_that_vllm_knows():
    schema = {"type": "object", "properties": {}}
    body = {"messages": [], "response_format": {"type": "json_object", "schema": schema}}
    told = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert own_form(Abilities("vllm", "x"), "/v1/chat/completions", body) == {"messages": [], "response_format": told}
    for kind in ("llama.cpp", "litmus", "unknown"):
        assert own_form(Abilities(kind, "x"), "/v1/chat/completions", body) == body
    for format in ({"type": "json_object"}, {"type": "json_object", "schema": None}, told, None, "json"):
        plain = {"messages": [], "response_format": format}
        assert own_form(Abilities("vllm", "x"), "/v1/chat/completions", plain) == plain


def test_llama_servers_form_of_tokens():
    llama = Abilities("llama.cpp", "x", 99)
    assert own_form(llama, "/tokenize", {"prompt": "a"}) == {"content": "a", "add_special": True, "with_pieces": False}
    assert own_form(llama, "/detokenize", {"tokens": [1], "model": "x"}) == {"tokens": [1]}
    pieces = {"tokens": [{"id": 4, "piece": "a"}, {"id": 5, "piece": [195]}]}
    answer = json.loads(our_form(llama, "/tokenize", json.dumps(pieces).encode()))
    assert answer == {"count": 2, "max_model_len": 99, "tokens": [4, 5], "token_strs": ["a", "\ufffd"]}
    assert json.loads(our_form(llama, "/tokenize", b'{"tokens": [7]}'))["tokens"] == [7]
    assert json.loads(our_form(llama, "/detokenize", b'{"content": "a"}')) == {"prompt": "a"}
    vllm = Abilities("vllm", "x")
    assert own_form(vllm, "/tokenize", {"prompt": "a"}) == {"prompt": "a"} and our_form(vllm, "/tokenize", b"x") == b"x"
