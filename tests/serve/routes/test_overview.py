"""`GET /overview`: what the server does, as the page draws it."""

from typing import Any

from fakes import FACTS

from app.schemas.overview import EXAMPLE, Overview
from serve.observe.gpu import GPU

TEXT = "/v1/completions"


def overview(served: Any) -> dict[str, Any]:
    response = served.client.get("/overview")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_it_tells_of_models_slots_and_queue(served: Any) -> None:
    (model,) = overview(served)["models"]
    (engine,) = model.pop("engines")
    assert model == {
        "id": FACTS.name,
        "status": "ready",
        "replicas": 1,
        "alive": 1,
        "in_flight": 0,
        "context": FACTS.context,
        "generated_tokens": 0,
        "prompt_tokens": 0,
        "scored_tokens": 0,
        "first_token": None,
    }
    slots = served.client.get("/slots").json()
    assert (engine["slots"], engine["waiting"], engine["texts"]) == (slots["slots"], slots["waiting"], slots["texts"])
    assert (engine["replica"], engine["age_s"] < 30) == (0, True)


def test_tokens_and_times_to_the_first_token_are_counted(served: Any) -> None:
    for prompt in ("abc", "abcd"):
        assert served.client.post(TEXT, json={"prompt": prompt, "max_tokens": 5}).status_code == 200
    served.client.post("/v1/score", json={"texts": ["one text"]})
    (model,) = overview(served)["models"]
    assert (model["generated_tokens"], model["prompt_tokens"], model["scored_tokens"]) == (10, 9, len("one text") + 1)
    first = model["first_token"]
    assert first["count"] == 2 and 0 < first["p50_s"] <= first["p90_s"] == first["p99_s"] < 10


def test_it_tells_of_processes_memory_and_cpus(served: Any) -> None:
    body = overview(served)
    kinds = {process["process"]: process for process in body["processes"]}
    assert set(kinds) == {"api", "main", "worker"}
    assert (kinds["worker"]["model"], kinds["worker"]["replica"], kinds["api"]["model"]) == (FACTS.name, 0, None)
    assert all(process["cpu_s"] >= 0 and process["resident_bytes"] > 1_000_000 for process in body["processes"])
    assert body["cpus"] >= 1 and 0 < body["memory_available_bytes"] <= body["memory_total_bytes"]


def test_gpus_are_as_the_driver_tells_them(served: Any, monkeypatch: Any) -> None:
    assert overview(served)["gpus"] == []
    monkeypatch.setattr("serve.observe.gpu.ask_driver", lambda: [GPU(0, 1_000, 2_000, None)])
    assert overview(served)["gpus"] == [{"index": 0, "used_bytes": 1_000, "total_bytes": 2_000, "utilization": None}]


def test_a_model_without_a_worker_is_loading_and_has_no_engine(served: Any) -> None:
    served.router.workers_died(served.router.replicas)
    (model,) = overview(served)["models"]
    assert (model["status"], model["alive"], model["engines"], model["context"]) == ("loading", 0, [], FACTS.context)
    assert {process["process"] for process in overview(served)["processes"]} == {"api", "main"}


def test_the_example_is_an_overview() -> None:
    assert Overview.model_validate(EXAMPLE).models[0].engines[0].slots[0].stage == "decode"
