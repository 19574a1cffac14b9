"""The server against its own OpenAPI document: by schemathesis, and by a thousand bodies that the document forbids."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving import ENVIRONMENT, ROOT, RunningServer

ROUTES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/score": {"text": "Once upon a time there was a king who had three sons."},
    "/v1/embeddings": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/apply-template": {"messages": [{"role": "user", "content": "hi"}]},
    "/detokenize": {"tokens": [5]},
    "/generate": {"prompt": ["hi"], "max_length": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
}
TUNING = "/v1/fine_tuning/jobs"
OF_JOBS = {  # they need a file; tests/jobs tries them
    *("/v1/files", "/v1/batches", "/v1/batches/{batch_id}/cancel", TUNING),
    *(f"{TUNING}/{{fine_tuning_job_id}}/{change}" for change in ("cancel", "pause", "resume")),
}
ADMIN = (
    "/admin/",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
)  # begin routes that start processes, so that they are not for thousands of requests; they have tests of their own
# Of the routes whose bodies are read as those of another one, it does not try each value of each field.
SCHEMATHESIS = "".join(
    f'[[operations]]\ninclude-path = "{path}"\nphases.coverage.enabled = false\n'
    for path in ("/apply-template", "/v1/messages/count_tokens")
)
MALFORMED = 1000
MAX_GROWTH_BYTES = 12 * 2**20  # of each process, over the second half of the malformed bodies
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["\ud800", -1, 2**70, "", [], {}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def document(api: RunningServer) -> dict[str, Any]:
    schema: dict[str, Any] = httpx.get(f"{api.url}/openapi.json").json()
    return schema


def body_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of a route's body, with the document's definitions, so that references resolve."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return {**schema, "components": document["components"]}


def test_schemathesis_finds_no_failure(small: RunningServer, tmp_path: Path) -> None:
    """`positive_data_acceptance` is left out: a document cannot say which models are served or what fits a context. One thread: Python 3.11
    may fail to parse a source in two at once (github.com/python/cpython/issues/106905).
    """
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{small.url}/openapi.json", "--checks", "all"]
    command += ["--exclude-checks", "positive_data_acceptance", "--phases", "examples,coverage,fuzzing", "--max-examples", "4"]
    command += ["--exclude-path-regex", f"^({'|'.join(ADMIN)})"]
    command += ["--seed", "7", "--request-timeout", "120", "--continue-on-failure", "--no-color", "--workers", "1", "--warnings", "off"]
    command += ["--generation-database", "none"]
    environment = {
        **ENVIRONMENT,
        "HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis"),
    }  # which characters there are, kept for all runs
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert all(path in document_paths(small) for path in ROUTES)


def document_paths(server: RunningServer) -> set[str]:
    return set(httpx.get(f"{server.url}/openapi.json").json()["paths"])


def test_every_post_route_is_tried(document: dict[str, Any]) -> None:
    posts = {path for path, methods in document["paths"].items() if "post" in methods}
    assert {path for path in posts if not path.startswith(ADMIN)} == set(ROUTES) | OF_JOBS


def test_every_example_of_the_document_works(api: RunningServer, document: dict[str, Any]) -> None:
    tried = 0
    for path in ROUTES:
        name = body_schema(document, path)["$ref"].rpartition("/")[2]
        for example in document["components"]["schemas"][name]["examples"]:
            answer = httpx.post(f"{api.url}{path}", json=example, timeout=120)
            assert answer.status_code == 200, (path, example, answer.text)
            tried += 1
    assert tried >= len(ROUTES)


def curls() -> Iterator[list[str]]:
    """The words of each curl command in the README and in the document of the API."""
    for page in ("README.md", "docs/api.md"):
        for command in re.findall(r"^curl .*?(?=^curl |^```|^#|^$)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            yield shlex.split(command.replace("\\\n", " "))[1:]


def test_every_curl_of_the_documents_works(api: RunningServer) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-N", action="store_true")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d")
    tried = set[str]()
    for words in curls():
        command, _ = parser.parse_known_args(words)
        url = command.url.replace("http://127.0.0.1:8000", api.url)
        headers = dict(header.split(": ") for header in command.H)
        answer = httpx.request("GET" if command.d is None else "POST", url, content=command.d, headers=headers, timeout=120)
        assert answer.status_code == 200 and "X-Litmus-Ignored" not in answer.headers, (words, answer.text)
        tried.add(url.removeprefix(api.url))
    assert tried >= {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions", "/v1/score", "/v1/embeddings"}


@st.composite
def malformed(draw: st.DrawFn, document: dict[str, Any]) -> tuple[str, bytes]:
    path = draw(st.sampled_from(sorted(ROUTES)))
    schema, body = body_schema(document, path), dict(ROUTES[path])
    validator = jsonschema.Draft202012Validator(schema)
    kind = draw(st.sampled_from(["bytes", "no object", "missing", "value", "value", "value", "value"]))
    if kind == "bytes":
        raw = draw(st.binary(max_size=60).filter(lambda raw: not is_json(raw)))
        return path, raw
    if kind == "no object":
        return path, json.dumps(draw(VALUES.filter(lambda value: not isinstance(value, dict)))).encode()
    properties = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    if kind == "missing":
        del body[next(iter(body))]
    else:
        field = draw(st.sampled_from(sorted(properties)))
        body[field] = draw(VALUES.filter(lambda value: not validator.is_valid({**body, field: value})))
    return path, json.dumps(body).encode()


def is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True


def memory(api: RunningServer) -> dict[int, int]:
    return {child.pid: child.memory_info().rss for child in api.children()}


@settings(max_examples=200, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(sorted(ROUTES)), name=st.text(min_size=1, max_size=20), value=VALUES)
def test_a_field_of_any_name_and_value_is_left_out_and_named_or_refused(api: RunningServer, path: str, name: str, value: Any) -> None:
    raw = json.dumps({**ROUTES[path], name: value})
    answer = httpx.post(f"{api.url}{path}", content=raw, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code in {200, 400}, (path, raw, answer.text)
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] == name, (path, raw, answer.text)


def test_a_thousand_malformed_bodies_are_a_4xx_each_and_leave_nothing_behind(api: RunningServer, document: dict[str, Any]) -> None:
    client = httpx.Client(base_url=api.url, timeout=60, headers={"Content-Type": "application/json"})
    sent, halfway = 0, {}

    @settings(
        max_examples=MALFORMED,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(malformed(document))
    def check(request: tuple[str, bytes]) -> None:
        nonlocal sent
        path, raw = request
        answer = client.post(path, content=raw)
        assert 400 <= answer.status_code < 500, (path, raw, answer.status_code, answer.text)
        error = answer.json()["error"]
        fields = {"message", "type"} if path.startswith("/v1/messages") else {"message", "type", "param", "code"}
        assert set(error) == fields and error["message"], (path, raw)
        assert "Traceback" not in error["message"] and "pydantic" not in error["message"]
        sent += 1
        if sent == MALFORMED // 2:
            halfway.update(memory(api))

    check()
    assert sent >= MALFORMED
    after = memory(api)
    assert halfway and {pid: after[pid] - before for pid, before in halfway.items() if after[pid] - before > MAX_GROWTH_BYTES} == {}
    for path, body in ROUTES.items():
        assert client.post(path, json=body).status_code == 200, path
