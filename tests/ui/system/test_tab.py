"""What the System tab's handlers do for whom."""

import asyncio
from typing import Any

import gradio as gr
import pytest

from tests.ui.system.conftest import Server, envelope, visit
from ui.client import ServerError
from ui.system.estimate import NO_MODEL, estimate_handler
from ui.system.fields import request_fields
from ui.system.models import NO_NAME, ask_handler, load_handler, unload_handler
from ui.system.rights import NOT_FROM_HERE
from ui.system.tab import SHARED_KEY, refresh_handler

ABROAD = visit("203.0.113.9")
SKIP = gr.skip()


def run(handler: Any, *arguments: Any) -> Any:
    return asyncio.run(handler(*arguments))


def is_active(timer: Any) -> bool:
    return bool(timer.active)


def test_a_look_draws_the_state_and_the_models(server: Server) -> None:
    problem, html, history, timer, tools, versions, names, form = run(refresh_handler(server), visit(), "selected", ())
    assert problem == "" and "storyteller" in html and "412 MB" in versions
    assert (len(history), is_active(timer), tools["visible"], names["choices"], form["visible"]) == (1, True, True, ["storyteller"], True)
    assert run(refresh_handler(server), visit(), "yes", history)[6] == SKIP, "a list that may be open does not change"


def test_where_nobody_looks_nothing_is_asked(server: Server) -> None:
    updates = run(refresh_handler(server), visit(), "", ())
    assert not is_active(updates[3]) and server.calls == []
    assert all(update == SKIP for index, update in enumerate(updates) if index != 3)


def test_who_is_no_administrator_gets_a_sentence_and_nothing_else(server: Server) -> None:
    server.keys = server.logged_in = True
    server.answers["GET /overview"] = (403, envelope("no", "admin_only"))
    problem, html, history, timer, tools, *_ = run(refresh_handler(server), visit(), "selected", ())
    assert "the role of your key is not admin" in problem
    assert (html, history, is_active(timer), tools["visible"]) == ("", (), False, False)


def test_a_key_for_all_visitors_makes_none_of_them_an_administrator(server: Server) -> None:
    server.share_a_key = True
    problem, html, *_ = run(refresh_handler(server), visit(), "selected", ())
    assert (SHARED_KEY in problem, html, server.calls) == (True, "", [])
    result, _ = run(load_handler(server), visit(), "storyteller", "", "", "", "", "")
    assert NOT_FROM_HERE[:40] in result
    assert server.calls == []


def test_a_server_that_is_gone_is_asked_again(server: Server) -> None:
    server.error = ServerError("No Litmus server answers.")
    problem, html, history, timer, *_ = run(refresh_handler(server), visit(), "yes", ())
    assert "No Litmus server answers." in problem and is_active(timer)
    assert html == history == SKIP, "what was drawn stays"


def test_an_older_server_is_not_asked_again(server: Server) -> None:
    del server.answers["GET /overview"]
    problem, _, _, timer, *_ = run(refresh_handler(server), visit(), "yes", ())
    assert "cannot tell what it is doing" in problem and not is_active(timer)


@pytest.mark.parametrize(
    ("answer", "sentence", "form_stays"),
    [((404, envelope("no")), "This server cannot load and unload models", False), ((503, envelope("draining")), "draining.", True)],
)
def test_without_admin_routes_the_state_is_drawn_all_the_same(server: Server, answer: Any, sentence: str, form_stays: bool) -> None:
    server.answers["GET /admin/models"] = answer
    problem, html, *_, versions, _, form = run(refresh_handler(server), visit(), "yes", ())
    assert (problem, "storyteller" in html, sentence in versions) == ("", True, True)
    assert (form == SKIP) is form_stays


@pytest.mark.parametrize("request_", [ABROAD, visit(x_forwarded_for="203.0.113.9"), visit(forwarded="for=203.0.113.9"), visit("")])
def test_without_keys_only_this_machine_may_change_models(server: Server, request_: Any) -> None:
    _, html, *_, tools, versions, names, form = run(refresh_handler(server), request_, "selected", ())
    assert "storyteller" in html and tools["visible"] is False and versions == names == form == SKIP
    assert server.calls == [("GET /overview", None)], "the server lists its versions to this machine only"
    server.calls.clear()
    results = [
        run(ask_handler(server), request_, "storyteller")[3],
        run(load_handler(server), request_, "storyteller", "", "", "", "", "")[0],
        run(unload_handler(server), request_, "storyteller", "")[1],
        run(estimate_handler(server), request_, "m", "", "", "", "", ""),
    ]
    assert all(NOT_FROM_HERE[:40] in result for result in results)
    assert server.calls == []
    server.keys = server.logged_in = True
    assert "is being loaded" in run(load_handler(server), request_, "storyteller", "", "", "", "", "")[0]


def test_a_load_sends_what_is_filled_in(server: Server) -> None:
    result, versions = run(load_handler(server), visit(), " storyteller ", "models/other ", "nf4", "", "2,048", "")
    assert "storyteller is being loaded" in result and "412 MB" in versions
    assert server.calls[0] == ("POST /admin/models/storyteller", {"path": "models/other", "quantize": "nf4", "context": 2048})


def test_what_is_wrong_with_a_load_is_said(server: Server) -> None:
    assert NO_NAME in run(load_handler(server), visit(), None, "", "", "", "", "")[0]
    assert "Slots must be a whole number, not “many”" in run(load_handler(server), visit(), "storyteller", "", "", "", "", "many")[0]
    assert server.calls == []
    server.answers["POST /admin/models/storyteller"] = (409, envelope("it is being loaded already"))
    assert "it is being loaded already." in run(load_handler(server), visit(), "storyteller", "", "", "", "", "")[0]


def test_an_unload_is_asked_first_and_then_done(server: Server) -> None:
    asked, question, confirm, _ = run(ask_handler(server), visit(), " storyteller ")
    assert (asked, confirm["visible"]) == ("storyteller", True) and "3 requests" in question
    assert [call for call, _ in server.calls] == ["GET /admin/models"]
    closed, result, _ = run(unload_handler(server), visit(), asked, " other ")
    assert closed["visible"] is False and "is being unloaded" in result
    assert server.calls[1][0] == "DELETE /admin/models/storyteller?default=other"


def test_a_refused_unload_keeps_the_question_open(server: Server) -> None:
    server.answers["DELETE /admin/models/storyteller"] = (409, envelope("it is the default model"))
    closed, result, _ = run(unload_handler(server), visit(), "storyteller", "")
    assert closed == SKIP and "it is the default model." in result
    assert NO_NAME in run(ask_handler(server), visit(), "")[3]


def test_an_estimate_sends_what_is_filled_in(server: Server) -> None:
    html = run(estimate_handler(server), visit(), "Qwen/Qwen3-8B", "nf4", "auto", "8192", "16", "qlora")
    assert "What the model would take" in html
    fields = {"model": "Qwen/Qwen3-8B", "quantize": "nf4", "dtype": "auto", "context": 8192, "slots": 16, "fine_tune": "qlora"}
    assert server.calls == [("POST /admin/estimate", fields)]
    assert NO_MODEL in run(estimate_handler(server), visit(), " ", "nf4", "auto", "", "", "")
    del server.answers["POST /admin/estimate"]
    assert "This server cannot estimate memory" in run(estimate_handler(server), visit(), "m", "", "", "", "", "")


def test_blank_fields_are_not_sent() -> None:
    assert request_fields(("path", "slots"), (None, " ")) == {}
