"""/admin/estimate: the command's answer over HTTP, for admins, and only about models that a request may name."""

import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.estimate.__main__ import main
from app.schemas.estimate import Estimate, EstimateRequest
from app.settings import Settings
from app.settings.default import default_model
from serve.admission.security import Security
from serve.middleware import install
from serve.routes.estimate import create_estimate, path_of

SERVED = {"story": "models/storyteller"}


@pytest.fixture(scope="module")
def client() -> TestClient:
    settings = Settings(model={"path": "models/storyteller", "name": "story"}, _env_file=None, _cli_parse_args=False)  # type: ignore[call-arg, arg-type]
    app = FastAPI()
    app.include_router(create_estimate(lambda: SERVED))
    install(app, 100_000, (), True, 30.0, [Security(settings).access])
    return TestClient(app, "http://127.0.0.1:8000", client=("127.0.0.1", 1))


def test_a_served_model_is_estimated(client: TestClient) -> None:
    answer = client.post("/admin/estimate", json={"model": "story", "quantize": "int8", "context": 256, "slots": 2, "cards": ["L4=24GB"]})
    estimate = Estimate.model_validate_json(answer.content)
    assert (estimate.quantize, estimate.context, estimate.slots) == ("int8", 256, 2)
    parts = (estimate.weights_bytes, estimate.cache_bytes, estimate.activation_bytes, estimate.overhead_bytes)
    assert estimate.total_bytes == sum(parts)
    assert [device.name for device in estimate.devices if device.name in {"cpu", "L4"}] == ["cpu", "L4"]


ASKED = "import os, sys; sys.stderr.write('litmus: ' + os.environ['HF_HUB_OFFLINE'] + ' '.join(sys.argv[1:])); sys.exit(2)"


def asked(client: TestClient, **body: Any) -> str:
    """What the command is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.routes.estimate.COMMAND", (sys.executable, "-c", ASKED))
        message: str = client.post("/admin/estimate", json=body).json()["error"]["message"]
    return message


def test_a_model_that_was_loaded_later_is_estimated(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SERVED, "later", "models/storyteller-base")
    assert asked(client, model="later").endswith(" -- models/storyteller-base")


def test_auto_is_the_default_model(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    command = asked(client, model="auto", context=256, slots=2).split()
    assert command[-2:] == ["--", "auto"]
    main(["--json", *command[1:]])
    assert Estimate.model_validate_json(capsys.readouterr().out).model == str(default_model())
    assert path_of("auto", {"auto": "org/name"}) == "org/name"  # a served model may have this name


SENTENCE = "import sys; sys.stderr.write('a warning\\nlitmus: org/none has no usable config.json\\n'); sys.exit(2)"


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        (SENTENCE, 400, "org/none has no usable config.json"),
        ("raise MemoryError", 503, "ended without an answer"),
        ("import time; time.sleep(60)", 503, "took more than"),
    ],
)
def test_a_command_without_an_answer_is_an_error_in_words(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, script: str, status: int, message: str
) -> None:
    monkeypatch.setattr("serve.routes.estimate.COMMAND", (sys.executable, "-c", script))
    monkeypatch.setattr("serve.routes.estimate.TIMEOUT_S", 0.3 if "sleep" in script else 60)
    answer = client.post("/admin/estimate", json={"model": "org/none"})
    assert answer.status_code == status and message in answer.json()["error"]["message"]


def test_nothing_is_downloaded_for_a_request(client: TestClient) -> None:
    sent = asked(client, model="org/none", fine_tune="lora", cards=["--json"])
    assert sent.startswith("1--quantize=none") and sent.endswith("--card=--json --fine-tune=lora -- org/none")


@pytest.mark.parametrize(
    "model", ["/etc", "models/storyteller-base", "../secret", "models/../models/storyteller-base", "story/../../x", "."]
)
def test_no_other_path_is_opened(client: TestClient, model: str) -> None:
    answer = client.post("/admin/estimate", json={"model": model})
    assert answer.status_code == 400 and "neither served here (story) nor a hub name" in answer.json()["error"]["message"]


@pytest.mark.parametrize("model", ["story", "auto", "models/storyteller", "org/name", "org/name@v1", "org/name:Q8_0"])
def test_what_may_be_named(model: str) -> None:
    assert path_of(model, SERVED) == ("models/storyteller" if model == "story" else model)


@pytest.mark.parametrize(("field", "value"), [("slots", 0), ("context", 1), ("quantize", "int3"), ("fine_tune", "full"), ("other", 1)])
def test_a_wrong_field_is_named(client: TestClient, field: str, value: object) -> None:
    answer = client.post("/admin/estimate", json={"model": "story", field: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field


def test_without_keys_other_machines_are_refused(client: TestClient) -> None:
    other = TestClient(client.app, "http://127.0.0.1:8000", client=("10.0.0.7", 1))
    forwarded = client.post("/admin/estimate", json={"model": "story"}, headers={"X-Forwarded-For": "10.0.0.7"})
    for answer in (other.post("/admin/estimate", json={"model": "story"}), forwarded):
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "admin_only"


def test_a_model_name_is_not_an_option() -> None:
    assert EstimateRequest(model="--help").model == "--help"
    with pytest.raises(Exception, match="neither served here"):
        path_of("--help", SERVED)
    assert Path("models/storyteller").is_dir()
