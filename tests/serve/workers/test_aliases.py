"""Further names of models: what is asked for by them, and what is not."""

from collections.abc import Mapping
from typing import Any

import pytest

from app.engine.facts import AdapterFacts
from app.errors import NotReady, UnknownModel
from app.settings import QueueSettings
from serve.workers.router import Router

CHAT = {"messages": [{"role": "user", "content": "Hello."}]}


def router_of(aliases: Mapping[str, str]) -> Router:
    router = Router(["first", "second"], QueueSettings())
    router.aliases = aliases
    return router


def test_a_name_that_a_model_has_is_always_its_own() -> None:
    router = router_of({"gpt-4o": "second", "*": "second"})
    router.adapters["tuned"], router.absent["gone"] = "first", UnknownModel("it was unloaded")
    names = {"first": "first", "second": "second", "tuned": "tuned", "gone": "gone", "gpt-4o": "second", "claude": "second"}
    assert {name: router.name_of(name) for name in names} == names
    assert (router.name_of(None), router.base_of("tuned"), router.base_of("claude")) == ("first", "first", "second")
    with pytest.raises(UnknownModel, match="unloaded"):
        router.fleet("gone")


def test_a_fine_tuned_model_that_is_gone_is_answered_by_no_other() -> None:
    with pytest.raises(UnknownModel, match="'ft:first:alice:1' is not served here"):
        router_of({"*": "first"}).fleet("ft:first:alice:1")


def test_an_alias_of_a_model_that_was_unloaded_says_so() -> None:
    router = router_of({"gpt-4o": "second"})
    router.withdraw("second")
    router.absent["second"] = NotReady("the model 'second' is being loaded")
    with pytest.raises(NotReady, match="'second'"):
        router.fleet("gpt-4o")


def test_an_answer_names_the_model_itself_and_the_list_has_every_name(served: Any) -> None:
    served.router.aliases = {"gpt-4o": "fake", "*": "fake"}
    for name in ("gpt-4o", "gpt-3.5-turbo", "fake"):
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "a"}), ("/v1/embeddings", {"input": "a"})):
            response = served.client.post(path, json={**body, "model": name})
            assert (response.status_code, response.json()["model"]) == (200, "fake"), (path, name)
        assert served.client.post("/tokenize", json={"prompt": "a", "model": name}).status_code == 200
    cards = served.client.get("/v1/models").json()["data"]
    assert [(card["id"], card["root"], card["default"]) for card in cards] == [("fake", "fake", True), ("gpt-4o", "fake", False)]
    assert cards[0]["aliases"] == ["gpt-4o", "*"]
    assert served.client.get("/v1/models/gpt-4o").json() == cards[1]
    for unlisted in ("any", "*"):
        response = served.client.get(f"/v1/models/{unlisted}")
        assert response.status_code == 404 and f"no model is listed as '{unlisted}'" in response.json()["error"]["message"]
    metrics = served.client.get("/metrics").text
    assert 'model="fake"' in metrics and "gpt" not in metrics


def test_an_adapter_has_its_own_card_and_none_of_the_names_of_its_base(served: Any) -> None:
    served.router.aliases = {"gpt-4o": "fake"}
    served.router.fleet(None).adapters["tuned"] = AdapterFacts("tuned", "x", "y", "z")
    served.router.adapters["tuned"] = "fake"
    card = served.client.get("/v1/models/tuned").json()
    assert (card["id"], card["root"], card["parent"], card["aliases"]) == ("tuned", "tuned", "fake", [])
