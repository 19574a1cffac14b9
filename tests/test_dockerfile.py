"""No Docker engine is needed: the Dockerfile is linted and what it promises is read from it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))


def instructions():
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def values(name):
    return [value for word, value in instructions() if word == name]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint has no build for this machine")
def test_lint():
    done = subprocess.run([HADOLINT, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_base_is_pinned_and_slim():
    assert [re.fullmatch(r"python:3\.11-slim[\w.-]*", value) is not None for value in values("FROM")] == [True]


def test_does_not_run_as_root():
    words = [word for word, _ in instructions()]
    assert int(values("USER")[-1]) > 0
    assert words.index("USER") < words.index("CMD") and "RUN" not in words[words.index("USER") :]


def test_only_runtime_requirements_and_before_the_code():
    assert not any("requirements-dev" in value for _, value in instructions())
    order = [f"{word} {value}" for word, value in instructions()]
    install = next(index for index, line in enumerate(order) if "pip install" in line)
    assert install < next(index for index, line in enumerate(order) if line.startswith("COPY app/"))


def test_what_is_copied_exists_and_is_not_ignored():
    allowed = {line.removeprefix("!").rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [source.rstrip("/") for value in values("COPY") for source in value.split()[:-1] if source[:2] != "--"]
    assert all((ROOT / source).exists() for source in sources)
    assert set(sources) == allowed


def test_command_is_exec_form_and_listens_outside():
    command = json.loads(values("CMD")[-1])
    assert command[:3] == ["python", "-m", "serve"]
    assert command[command.index("--server.host") + 1] == "0.0.0.0"
    assert values("EXPOSE") == ["8000"]


def test_health_is_readiness():
    check = values("HEALTHCHECK")[-1]
    command = json.loads(check[check.index("CMD") + 3 :])
    assert command[:2] == ["python", "-c"] and "/ready" in command[2]
    compile(command[2], "HEALTHCHECK", "exec")
