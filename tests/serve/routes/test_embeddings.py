"""POST /v1/embeddings through the real routes and router, over a fake engine."""

import asyncio
import base64
import json
import struct
from dataclasses import replace
from typing import Any

import psutil
import pytest
from fakes import FACTS, vector_of

from app.engine.request import Embed
from app.settings import QueueSettings
from serve.workers.messages import Ready

PATH = "/v1/embeddings"


def ask(served: Any, **fields: Any) -> Any:
    answer = served.client.post(PATH, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(served: Any, **fields: Any) -> tuple[int, str, str, str]:
    answer = served.client.post(PATH, content=json.dumps(fields), headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"], error["message"]


def test_the_answer_has_openais_form(served: Any) -> None:
    body = ask(served, input="abc", model="fake")
    (job,) = served.engine.submitted
    assert isinstance(job, Embed) and (job.tokens, job.pooling, job.tier) == (served.tokenizer.encode("abc", ""), "mean", "default")
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": list(struct.unpack("<3f", struct.pack("<3f", *vector_of(job))))}],
        "model": "fake",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
        "service_tier": None,
    }


def test_base64_holds_the_same_numbers_in_float32(served: Any) -> None:
    (item,) = ask(served, input="abc", encoding_format="base64")["data"]
    (plain,) = ask(served, input="abc", encoding_format="float")["data"]
    assert list(struct.unpack("<3f", base64.b64decode(item["embedding"]))) == plain["embedding"]
    assert ask(served, input="abc", encoding_format=None)["data"] == [plain]


@pytest.mark.parametrize(
    ("sent", "lengths"),
    [("abc", [4]), (["abc", "a", " "], [4, 2, 2]), ([5, 6, 7], [3]), ([[5], [6, 7]], [1, 2]), (["a"], [2])],
)
def test_input_in_every_shape_keeps_its_order(served: Any, sent: Any, lengths: list[int]) -> None:
    body = ask(served, input=sent)
    assert [item["index"] for item in body["data"]] == list(range(len(lengths)))
    assert [item["embedding"][0] for item in body["data"]] == lengths == [len(job.tokens) for job in served.engine.submitted]
    assert body["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}


def test_pooling_and_tier_reach_the_engine(served: Any) -> None:
    body = ask(served, input=["ab", "c"], pooling="last", service_tier="flex")
    assert [(job.pooling, job.tier) for job in served.engine.submitted] == [("last", "flex")] * 2
    assert body["service_tier"] == "flex" and all(item["embedding"][2] < 0 for item in body["data"])
    assert ask(served, input="a", service_tier="auto")["service_tier"] == "default"


def test_only_the_models_own_size_is_a_dimension(served: Any) -> None:
    assert ask(served, input="a", dimensions=3)["data"] == ask(served, input="a", dimensions=None)["data"]
    status, code, param, message = refused(served, input="a", dimensions=2)
    assert (status, code, param) == (400, "invalid_value", "dimensions") and "send 3 or none" in message


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ("", "input"),
        ([], "input"),
        (["a", ""], "input.1"),
        ([[5], []], "input.1"),
        ([5, -1], "input.1"),
        ([[5], [6, -1]], "input.1.1"),
        ([5, 300], "input"),
        ([[5], [300]], "input.1"),
        (["a"] * 2049, "input"),
        ([[5]] * 2049, "input"),
        (["a", "\ud800"], "input.1"),
        (5, "input"),
        (None, "input"),
    ],
)
def test_bad_input_is_named(served: Any, sent: Any, param: str) -> None:
    assert refused(served, input=sent)[:3:2] == (400, param)
    assert not served.engine.submitted


@pytest.mark.parametrize(
    ("sent", "param"), [("a" * 64, "input"), (["a", "a" * 64], "input.1"), ([5] * 65, "input"), ([[5] * 65], "input.0")]
)
def test_a_text_longer_than_the_window_is_refused_with_the_numbers(served: Any, sent: Any, param: str) -> None:
    status, code, named, message = refused(served, input=sent)
    assert (status, code, named) == (400, "context_length_exceeded", param) and "65 tokens" in message
    assert "at most 64 of a text" in message
    served.router.append([Ready(psutil.Process().pid, 0, replace(FACTS, context=100)), "OK"])
    assert "at most 64 (the setting model.text_window) of a text" in refused(served, input=sent)[3]
    for setting, limit in ("model.context", "the setting model.context"), (None, "the memory that is free"):
        facts = replace(FACTS, largest_context=100, context_setting=setting)
        served.router.append([Ready(psutil.Process().pid, 0, facts), "OK"])
        assert f"at most 64 ({limit}) of a text" in refused(served, input=sent)[3]
    assert not served.engine.submitted


def test_a_text_may_fill_the_window(served: Any) -> None:
    assert ask(served, input=[5] * 64)["usage"]["total_tokens"] == 64


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"pooling": "cls"}, "pooling"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"normalize": False}, "normalize"),
        ({"embd_normalize": 0}, "embd_normalize"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"model": "none"}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(served: Any, fields: dict[str, Any], param: str) -> None:
    status, _, named, _ = refused(served, input="a", **fields)
    assert (status, named) == (404 if param == "model" else 400, param)


def test_values_that_change_nothing_are_accepted(served: Any) -> None:
    ask(served, input="a", normalize=True, embd_normalize=2, user="someone", safety_identifier="someone")


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_a_banned_user_embeds_nothing(served: Any, field: str) -> None:
    assert refused(served, input="a", **{field: "banned"})[:3:2] == (403, field)


def test_a_failing_text_fails_the_request_and_leaves_nothing_in_flight(served: Any) -> None:
    assert refused(served, input=["a", "~", "b"])[:2] == (500, "engine_failed")
    assert served.router.in_flight == 0 and served.router.replicas[0].load == 0
    assert ask(served, input="a")["data"]


def test_many_texts_come_in_portions_that_leave_room_for_others(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step, in_flight = served.engine.step, []

    def counted() -> Any:
        in_flight.append(served.router.in_flight)
        return step()

    monkeypatch.setattr(served.engine, "step", counted)
    body = ask(served, input=[[5] * (1 + index % 7) for index in range(40)])
    assert [item["index"] for item in body["data"]] == list(range(40))
    assert [item["embedding"][0] for item in body["data"]] == [1 + index % 7 for index in range(40)]
    assert max(in_flight) == 2, "of five places, two slots and three in the queue"
    assert body["usage"]["total_tokens"] == sum(1 + index % 7 for index in range(40))


def test_what_has_begun_waits_for_room_and_what_has_not_is_refused(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replica, step = served.router.replicas[0], served.engine.step

    def leave() -> None:
        replica.load -= 5

    def crowded() -> Any:
        """Others fill the queue while the first portion is read, for a moment."""
        if len(served.engine.submitted) <= 2:
            replica.load += 5
            asyncio.get_running_loop().call_later(0.08, leave)
        return step()

    monkeypatch.setattr(served.engine, "step", crowded)
    assert len(ask(served, input=["a"] * 7)["data"]) == 7
    replica.load = 5
    assert refused(served, input=["a"] * 7)[:2] == (429, "queue_full")


@pytest.mark.parametrize("comes_back", [True, False])
def test_what_has_begun_waits_for_the_next_worker(served: Any, monkeypatch: pytest.MonkeyPatch, comes_back: bool) -> None:
    router, step = served.router, served.engine.step
    monkeypatch.setattr(router, "queue_settings", QueueSettings(resume_wait_s=60 if comes_back else 0.1))

    def dying() -> Any:
        """The worker dies after the first portion."""
        loop, first = asyncio.get_running_loop(), len(served.engine.submitted) <= 2
        if first:
            loop.call_soon(router.workers_died, router.replicas)
        if first and comes_back:
            loop.call_later(0.08, router.append, [Ready(psutil.Process().pid, 0, FACTS), "OK"])
        return step()

    monkeypatch.setattr(served.engine, "step", dying)
    if comes_back:
        assert len(ask(served, input=["a"] * 7)["data"]) == 7
    else:
        assert refused(served, input=["a"] * 7)[:2] == (503, "not_ready")
    assert router.in_flight == 0


def test_the_deadline_is_that_of_all_portions(served: Any) -> None:
    served.worker.stalled = True
    status, code, _, message = refused(served, input=["a"] * 7, timeout_s=0.05)
    assert (status, code) == (408, "deadline_exceeded") and "after 0.05 s" in message
    assert served.router.in_flight == 0
