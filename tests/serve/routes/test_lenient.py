"""What real clients send beyond what this server knows: left out and named, accepted where it changes nothing, else refused."""

import gzip
import json
import logging
import zlib
from typing import Any

import brotli
import pytest

from app.schemas import wire
from serve.routes import lenient
from serve.routes.lenient import header_of

CHAT, TEXT, SCORE = "/v1/chat/completions", "/v1/completions", "/v1/score"
HELLO = [{"role": "user", "content": "abc"}]
IGNORED = "X-Litmus-Ignored"


def ask(served: Any, path: str, **body: Any) -> Any:
    response = served.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize(
    ("path", "body", "ignored"),
    [
        (TEXT, {"prompt": "a", "colour": 1, "max_tokens": 1}, "colour"),
        (TEXT, {"prompt": "a", "max-tokens": 1, "int": 1, "max_tokens": 1}, "max-tokens, int"),
        (TEXT, {"prompt": "a", "": 1, "max_tokens": 1}, ""),
        (CHAT, {"messages": [{**HELLO[0], "weight": 0}], "max_tokens": 1}, "messages.0.weight"),
        (
            CHAT,
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}],
                "max_tokens": 1,
            },
            "messages.0.content.0.cache_control",
        ),
        (CHAT, {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True, "padding": 1}}, "stream_options.padding"),
        (SCORE, {"text": "abcabcabc", "lang": "en"}, "lang"),
    ],
)
def test_an_unknown_field_is_left_out_and_named(served: Any, strictly_served: Any, path: str, body: Any, ignored: str) -> None:
    assert ask(served, path, **body).headers[IGNORED] == ignored
    refused = strictly_served.client.post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_parameter")


def test_what_a_chat_can_do_without_is_left_out_and_named(served: Any, strictly_served: Any) -> None:
    for fields in ({"store": True}, {"verbosity": "low"}, {"service_tier": "priority"}):
        (name,) = fields
        assert ask(served, CHAT, messages=HELLO, max_tokens=1, **fields).headers[IGNORED] == name
        refused = strictly_served.client.post(CHAT, json={"messages": HELLO, "max_tokens": 1, **fields})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")
    body = {"messages": [{**HELLO[0], "name": "Ann"}], "max_tokens": 1, "stream": True, "colour": 1, "verbosity": "high"}
    assert ask(served, CHAT, **body).headers[IGNORED] == "colour, verbosity, messages.0.name"


def test_the_header_says_that_it_names_not_all(served: Any) -> None:
    for count, rest in ((32, []), (33, ["..."])):
        names = [f"field{place}" for place in range(count)]
        header = ask(served, TEXT, prompt="a", max_tokens=1, **dict.fromkeys(names, 1)).headers[IGNORED]
        assert header.split(", ") == [*names[:32], *rest]


def test_a_request_without_unknown_fields_has_no_such_header(served: Any) -> None:
    assert IGNORED not in ask(served, TEXT, prompt="a", max_tokens=1).headers


def test_an_unknown_field_hides_no_other_error(served: Any) -> None:
    error = served.client.post(TEXT, json={"prompt": "a", "colour": 1, "max_tokens": 0}).json()["error"]
    assert error["param"] == "max_tokens"


def test_a_name_reaches_the_header_as_a_name_and_no_log(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        response = ask(served, TEXT, prompt="a", max_tokens=1, **{"x\r\nSet-Cookie: a": 1, "a secret text": 2, "plain_name": 3})
    assert response.headers[IGNORED] == "x%0D%0ASet-Cookie%3A%20a, a%20secret%20text, plain_name"
    assert "secret" not in caplog.text and "plain_name" not in caplog.text
    assert header_of(["a\ud800", "b"]) == "a%5Cud800, b"


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False, "verbosity": "medium"},
        {"tools": [], "tool_choice": "auto"},
        {"tools": [], "tool_choice": "none"},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": True},
        {"functions": [], "function_call": "none"},
        {"modalities": ["text"]},
        {"n": None},
        {"stop": ""},
        {"stop": []},
        {"logit_bias": {}},
        {"prompt_cache_key": "a", "prompt_cache_retention": "24h"},
        {"safety_identifier": "a"},
        {"reasoning_effort": "none"},
        {"audio": None, "prediction": None},
        {"top_p": 0},
        {"seed": 1.0, "max_tokens": 2.0, "n": 1.0, "top_logprobs": 2.0, "logprobs": True},
        {"top_logprobs": 0},
        {"top_logprobs": 0, "logprobs": False},
        {"skip_special_tokens": True, "length_penalty": 1.0, "typical_p": 1.0},
    ],
)
def test_values_that_change_nothing_are_accepted_without_a_word(served: Any, fields: dict[str, Any]) -> None:
    response = ask(served, CHAT, messages=HELLO, **{"max_tokens": 2, **fields})
    assert IGNORED not in response.headers


@pytest.mark.parametrize(
    "fields", [{"tool_choice": "required"}, {"typical_p": 0.5}, {"modalities": ["text", "audio"]}, {"cache_prompt": False}]
)
def test_values_that_would_change_the_answer_are_refused(served: Any, fields: dict[str, Any]) -> None:
    response = served.client.post(CHAT, json={"messages": HELLO, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(fields)))


def test_a_banned_user_is_known_by_either_name(served: Any) -> None:
    error = served.client.post(CHAT, json={"messages": HELLO, "safety_identifier": "banned"})
    assert (error.status_code, error.json()["error"]["param"]) == (403, "safety_identifier")


def test_top_p_0_is_greedy(served: Any) -> None:
    ask(served, TEXT, prompt="a", max_tokens=1, top_p=0)
    assert served.engine.submitted[-1].sampling.top_p == 0


def test_an_assistant_without_content_said_nothing(served: Any) -> None:
    messages = [*HELLO, {"role": "assistant", "content": None}, *HELLO]
    told = ask(served, CHAT, messages=messages, max_tokens=1)
    empty = ask(served, CHAT, messages=[*HELLO, {"role": "assistant", "content": ""}, *HELLO], max_tokens=1)
    assert told.json()["usage"]["prompt_tokens"] == empty.json()["usage"]["prompt_tokens"]


def test_usage_so_far_is_in_every_chunk(served: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    lines = ask(served, CHAT, messages=HELLO, max_tokens=3, stream=True, stream_options=options).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts[0] == 1 and counts == sorted(counts) and counts[-1] == max(counts) > 0 and not chunks[-1]["choices"]


def zipped(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


BODY = json.dumps({"prompt": "abc", "max_tokens": 1}).encode()
DEFLATE = zlib.compressobj(wbits=-zlib.MAX_WBITS)
RAW_DEFLATED = DEFLATE.compress(BODY) + DEFLATE.flush()


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", zipped(BODY)),
        ("x-gzip", zipped(BODY)),
        ("gzip", zipped(BODY[:5]) + zipped(b"") + zipped(BODY[5:])),
        ("deflate", zlib.compress(BODY)),
        ("deflate", RAW_DEFLATED),
        ("br", brotli.compress(BODY)),
        ("identity", BODY),
        ("gzip, br", brotli.compress(zipped(BODY))),
    ],
    ids=["gzip", "x-gzip", "members", "deflate", "raw deflate", "br", "identity", "gzip in br"],
)
def test_compressed_bodies_are_read(served: Any, encoding: str, content: bytes) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    assert served.client.post(TEXT, content=content, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"Content-Encoding": "zstd"}, BODY, 415, "unsupported_media_type"),
        ({"Content-Encoding": "gzip"}, BODY, 400, "invalid_encoding"),
        ({"Content-Encoding": "gzip"}, zipped(BODY)[:-9], 400, "invalid_encoding"),
        ({"Content-Encoding": "gzip"}, zipped(BODY) + b"junk", 400, "invalid_encoding"),
        ({"Content-Encoding": "gzip"}, zipped(BODY) + zipped(BODY)[:-9], 400, "invalid_encoding"),
        ({"Content-Encoding": "gzip"}, zipped(BODY) + zipped(b"") * 256, 400, "invalid_encoding"),
        ({"Content-Encoding": "deflate"}, zlib.compress(BODY) + b"junk", 400, "invalid_encoding"),
        ({"Content-Encoding": "deflate"}, RAW_DEFLATED + b"junk", 400, "invalid_encoding"),
        ({"Content-Encoding": "br"}, brotli.compress(BODY) + b"junk", 400, "invalid_encoding"),
        ({"Content-Encoding": "br"}, brotli.compress(BODY)[:-3], 400, "invalid_encoding"),
        ({"Content-Encoding": "deflate"}, b"\x00", 400, "invalid_encoding"),
        ({"Content-Type": "application/json; charset=utf-16"}, BODY.decode().encode("utf-16"), 415, "unsupported_media_type"),
    ],
    ids=range(12),
)
def test_a_body_that_cannot_be_read_is_refused(served: Any, headers: dict[str, str], content: bytes, status: int, code: str) -> None:
    response = served.client.post(TEXT, content=content, headers={"Content-Type": "application/json", **headers})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_small_body_that_becomes_a_large_one_is_refused(served: Any) -> None:
    blanks = b" " * 10**7
    for encoding, content in {
        "gzip": zipped(blanks),
        "x-gzip": zipped(blanks[:15_000]) * 2,
        "br": brotli.compress(blanks, quality=5),
        "gzip, gzip": zipped(zipped(blanks * 10)),
    }.items():
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        response = served.client.post(TEXT, content=content, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large"), encoding


@pytest.mark.parametrize("path", ["/v1/models/", "/health/", "/v1", "/v1/", "/favicon.ico", "/v1/models//"])
def test_paths_that_people_and_browsers_try(served: Any, path: str) -> None:
    got, head = served.client.get(path), served.client.head(path)
    assert got.status_code == head.status_code == 200 and got.content and not head.content
    assert head.headers["content-length"] == got.headers["content-length"]


def test_the_base_url_names_the_routes(served: Any) -> None:
    routes = served.client.get("/v1").json()["routes"]
    assert {"/v1/chat/completions", "/v1/score", "/v1/models/{name:path}", "/ready"} <= set(routes) and "/v1" not in routes


def test_a_slash_at_the_end_of_a_post_is_nothing(served: Any) -> None:
    assert served.client.post(f"{TEXT}/", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_head_is_not_for_routes_that_take_a_body(served: Any) -> None:
    assert served.client.head(TEXT).status_code == 405


def test_a_number_is_not_taken_for_false(served: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    for fields, param in (
        ({"reasoning": {"exclude": 0}}, "reasoning.exclude"),
        ({"stream": True, "stream_options": {"include_obfuscation": 0}}, "stream_options.include_obfuscation"),
    ):
        response = served.client.post("/v1/chat/completions", json={**chat, **fields})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


@pytest.mark.parametrize(("count", "status"), [(40, 200), (60, 400)])
def test_more_unknown_fields_than_are_looked_at_are_refused(served: Any, monkeypatch: pytest.MonkeyPatch, count: int, status: int) -> None:
    for module in (wire, lenient):
        monkeypatch.setattr(module, "MAX_MISTAKES", 50)
    parts = [{"type": "text", "text": "", "x": 1}] * (count - 1) + [{"type": "text", "text": "a", "x": 1}]
    response = served.client.post(CHAT, json={"messages": [{"role": "user", "content": parts}], "max_tokens": 1})
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["message"] == "unknown parameter 'messages.0.content.0.x'"


def test_an_object_of_too_many_fields_is_refused(served: Any) -> None:
    response = served.client.post(CHAT, json={"messages": HELLO, **{f"x{index}": 1 for index in range(300)}})
    assert (response.status_code, response.json()["error"]["message"]) == (400, "an object of 301 fields; at most 256 are supported")
