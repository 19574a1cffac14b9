"""What the server reports about itself: models, readiness, slots."""

import json
import multiprocessing
import re
from dataclasses import replace
from typing import Any, get_args

import psutil
import pytest
from fakes import CACHE, FACTS
from thinking import QWEN
from tinymodels import ROOT

from app.engine.events import Report
from app.engine.facts import AdapterFacts, Facts, Weights
from app.models.progress import Stage
from app.models.revision import VERSION
from app.schemas import ModelCard, SlotList
from app.schemas.state import CARD_EXAMPLE, SLOTS_EXAMPLE
from app.settings import QueueSettings
from serve.routes.state import capabilities_of
from serve.workers.messages import Events, Ready
from serve.workers.progress import SharedProgress

TEXT = "/v1/completions"
ANTHROPIC = {"anthropic-version": "2023-06-01"}
KEPT = ("model.layers.1.mlp.down_proj", "lm_head")


def test_load_balancers_may_ask_for_the_head_alone(served: Any) -> None:
    assert [served.client.head(path).status_code for path in ("/health", "/ready")] == [200, 200]


def test_the_version_is_told(served: Any) -> None:
    assert served.client.get("/version").json() == {"version": VERSION}


def test_models_say_what_is_served(served: Any) -> None:
    (card,) = served.client.get("/v1/models").json()["data"]
    assert (card["id"], card["context"], card["slots"], card["observer"]) == ("fake", 64, 2, "fake-base")
    assert (card["max_model_len"], card["default"], card["quantize"], card["revision"]) == (64, True, "none", "")
    assert card["methods"] == ["binoculars", "likelihood_ratio", "fast_detect", "perplexity", "log_rank"]
    assert served.client.get("/v1/models/fake").json() == card


def test_anthropics_clients_read_a_card_in_their_own_form(served: Any) -> None:
    types = pytest.importorskip("anthropic.types")

    def read() -> Any:
        page = served.client.get("/v1/models", headers=ANTHROPIC).json()
        (info,) = page.pop("data")
        assert page == {"has_more": False, "first_id": "fake", "last_id": "fake"}
        assert served.client.get("/v1/models/fake", headers=ANTHROPIC).json() == info
        return types.ModelInfo.model_validate(info)

    info = read()
    assert (info.id, info.display_name, info.max_input_tokens, info.max_tokens) == ("fake", "fake", 64, 64)
    assert info.capabilities.structured_outputs.supported and not info.capabilities.batch.supported
    assert (info.capabilities.thinking.supported, info.capabilities.effort.supported) == (False, False)
    assert info.capabilities.thinking.types.disabled.supported
    del served.tokenizer.chat
    served.tokenizer.base.chat_template = QWEN + "{{ reasoning_effort }}"
    abilities = read().capabilities
    assert abilities.thinking.types.enabled.supported and abilities.thinking.types.disabled.supported and abilities.effort.max.supported
    assert served.client.get("/v1/models/none", headers=ANTHROPIC).status_code == 404


def test_layers_with_16_bit_inputs_are_named_of_model_and_observer(served: Any) -> None:
    facts = replace(FACTS, weights=Weights(inputs_of_16_bits=KEPT), observer_weights=Weights())
    served.router.append([Ready(psutil.Process().pid, 0, facts), "OK"])
    card = served.client.get("/v1/models/fake").json()
    assert card["weights"]["layers_with_16_bit_inputs"] == list(KEPT)
    assert card["observer_weights"]["layers_with_16_bit_inputs"] == []
    served.router.append([Ready(psutil.Process().pid, 0, replace(facts, observer=None, observer_weights=None)), "OK"])
    assert served.client.get("/v1/models/fake").json()["observer_weights"] is None


def test_the_card_says_which_model_drafts(served: Any) -> None:
    assert served.client.get("/v1/models/fake").json()["draft"] is None
    facts = replace(FACTS, draft="small", draft_weights=Weights("gguf", ("Q4_0",), 1000, 600))
    served.router.append([Ready(psutil.Process().pid, 0, facts), "OK"])
    card = served.client.get("/v1/models/fake").json()
    assert card["draft"] == "small" and card["draft_weights"]["types"] == ["Q4_0"]
    assert facts.of(AdapterFacts("tuned", "x", "y", "z")).draft is None, "an adapter's rows are not drafted by it"


def test_an_adapter_was_created_when_its_files_were(served: Any) -> None:
    served.router.fleet(None).adapters["tuned"] = AdapterFacts("tuned", "x", "y", "z", made=1_795_836_153)
    served.router.adapters["tuned"] = "fake"
    try:
        card, base = (served.client.get(f"/v1/models/{name}").json() for name in ("tuned", "fake"))
    finally:
        del served.router.adapters["tuned"], served.router.fleet(None).adapters["tuned"]
    assert (card["created"], card["created_at"]) == (1_795_836_153, "2026-11-28T03:22:33Z") and base["created"] != card["created"]


def test_the_card_says_what_the_weights_are(served: Any) -> None:
    """`quantize` is what the setting did: nothing, of a file that was quantized before."""
    weights, observer_weights = Weights("gguf", ("Q4_K", "Q6_K"), 1000, 600, KEPT), Weights("float", ("float32",), 9, 36)
    facts = replace(FACTS, weights=weights, observer_weights=observer_weights)
    served.router.append([Ready(psutil.Process().pid, 0, facts), "OK"])
    card = served.client.get("/v1/models/fake").json()
    common = {"format": "gguf", "types": ["Q4_K", "Q6_K"], "parameters": 1000, "bytes": 600}
    assert (card["quantize"], card["weights"]) == ("none", {**common, "layers_with_16_bit_inputs": list(KEPT)})
    assert card["observer_weights"] == {
        "format": "float",
        "types": ["float32"],
        "parameters": 9,
        "bytes": 36,
        "layers_with_16_bit_inputs": [],
    }


@pytest.mark.parametrize(
    ("facts", "present", "missing"),
    [
        (FACTS, {"chat", "completions", "score", "embeddings", "structured_output", "beam_search", "contrastive_search"}, {"tools"}),
        (replace(FACTS, tools="template"), {"chat", "tools"}, set()),
        (replace(FACTS, tools="general", chat=False), {"completions", "score"}, {"chat", "tools"}),
        (replace(FACTS, slots=1), {"chat"}, {"beam_search", "contrastive_search"}),
    ],
)
def test_capabilities_are_what_template_and_slots_allow(facts: Facts, present: set[str], missing: set[str]) -> None:
    capabilities = set(capabilities_of(facts))
    assert present <= capabilities and not missing & capabilities


def test_readiness_follows_the_worker(served: Any) -> None:
    assert served.client.get("/ready").json() == {"status": "ready", "models": {"fake": "ready"}}
    served.router.replicas[0].worker, worker = None, served.router.replicas[0].worker
    response = served.client.get("/ready")
    assert (response.status_code, response.json()) == (503, {"status": "loading", "models": {"fake": "loading"}})
    served.router.replicas[0].worker = worker
    served.router.draining = True
    response = served.client.get("/ready")
    assert (response.status_code, response.json()["status"]) == (503, "draining")
    assert served.client.get("/health").json() == {"status": "ok"}
    response = served.client.post(TEXT, json={"prompt": "a"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_slots_are_reported_without_any_text(served: Any) -> None:
    body = served.client.get("/slots").json()
    busy, idle = body["slots"]
    counts = {"prompt_tokens": 5, "cached_tokens": 7, "generated_tokens": 3, "drafted_tokens": 4, "accepted_tokens": 2}
    assert busy == {"slot": 0, "stage": "decode", "request": "a/0", **counts}
    assert (idle["stage"], idle["request"], idle["cached_tokens"]) == ("idle", None, 4)
    assert body["waiting"] == [{"request": "b/0", "position": 1, "eta_s": 1.5}, {"request": "c/0", "position": 2, "eta_s": None}]
    (decision,) = body["decisions"]
    assert (decision["at"], decision["reason"], decision["reused_tokens"]) == (1753000000.25, "holds its beginning", 2)
    pages = {"page_tokens": 4, "pages": 32, "used": 2, "shared": 1, "cached": 1, "free": 29}
    assert body["cache"] == {**pages, "prompt_tokens": 9, "found_tokens": 4, "set_back": 1}
    assert (body["object"], body["model"], body["texts"]) == ("slot.list", "fake", 3)
    assert served.router.in_flight == 0


def test_slots_are_reported_while_the_queue_is_full_and_while_it_drains(served: Any) -> None:
    served.router._fleets["fake"].queue_settings = QueueSettings.model_construct(max_waiting=-2)
    assert served.client.post(TEXT, json={"prompt": "a"}).status_code == 400
    served.router.draining = True
    assert served.client.get("/slots").status_code == 200


def test_a_worker_in_a_long_step_is_a_503(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served.worker.stalled = True
    with monkeypatch.context() as patch:
        patch.setattr("serve.workers.reports.TIMEOUT_S", 0.05)
        response = served.client.get("/slots")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "long step" in response.json()["error"]["message"]
    served.router.append(
        [Events(psutil.Process().pid, [Report("inspect-late", (), (), 0, (), CACHE)]), "OK"]
    )  # a report that comes too late is dropped
    served.worker.stalled = False
    assert served.client.get("/slots").status_code == 200


def test_slots_of_a_model_without_a_worker_are_a_503(served: Any) -> None:
    served.router.replicas[0].worker = None
    response = served.client.get("/slots")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")


def test_the_documented_examples_are_valid(served: Any) -> None:
    schemas = served.client.get("/openapi.json").json()["components"]["schemas"]
    for model, example in ((SlotList, SLOTS_EXAMPLE), (ModelCard, CARD_EXAMPLE)):
        whole = model.model_validate_json(json.dumps(example))
        assert whole.model_dump(mode="json", exclude_none=model is SlotList) == example, (
            "no field is missing, but those of slots that are null"
        )
        assert schemas[model.__name__]["examples"] == [{name: value for name, value in example.items() if value is not None}]


def test_the_card_in_the_document_is_the_example() -> None:
    (card,) = re.findall(r"^```json\n(.*?)^```", (ROOT / "docs/api.md").read_text(), re.M | re.S)
    assert json.loads(card) == CARD_EXAMPLE


def test_a_start_tells_how_far_it_has_come(served: Any) -> None:
    """As long as a worker loads; a spawned process writes to the same memory."""
    (replica,) = served.router.replicas
    worker, replica.worker, replica.progress = replica.worker, None, SharedProgress()
    assert served.client.get("/ready").json() == {"status": "loading", "models": {"fake": "loading"}}
    child = multiprocessing.get_context("spawn").Process(target=replica.progress.tell, args=("downloading", 3, 10))
    child.start()
    child.join()
    assert served.client.get("/ready").json()["progress"] == {"fake": {"stage": "downloading", "done_bytes": 3, "total_bytes": 10}}
    for stage in get_args(Stage):
        replica.progress.tell(stage, 0, 0)
        assert served.client.get("/ready").json()["progress"] == {"fake": {"stage": stage}}
    replica.worker = worker
    assert "progress" not in served.client.get("/ready").json()
