"""No Docker engine is needed: the Dockerfile is linted and what it promises is read from it, stage by stage."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))
TARGETS = ("cpu", "cuda")


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name; the first one is its FROM."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            word, value = line.split(maxsplit=1)
            if word == "FROM":
                name = value.split(" AS ")[1]
            found.setdefault(name, []).append((word, value))
    return found


def image(target: str) -> list[tuple[str, str]]:
    """All instructions that make the image of `target`, those of the stages that it is built on first."""
    own = stages()[target]
    parent = own[0][1].split(" AS ")[0]
    return [*(image(parent) if parent in stages() else []), *own]


def values(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [value for word, value in instructions if word == name]


def copied() -> set[str]:
    """What is taken from the folder of the build."""
    copies = [value.split() for stage in stages().values() for value in values(stage, "COPY") if "--from=" not in value]
    return {source.rstrip("/") for words in copies for source in words[:-1] if source[:2] != "--"}


@pytest.mark.skipif(HADOLINT is None, reason="hadolint has no build for this machine")
def test_lint() -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_default_target_is_for_a_cpu() -> None:
    assert [*stages()][-1] == "cpu" and set(TARGETS) <= stages().keys()


def test_every_base_is_pinned_slim_or_a_stage_before() -> None:
    before = {"scratch"}
    for name, instructions in stages().items():
        base = instructions[0][1].split(" AS ")[0]
        assert base in before or re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base), base
        before.add(name)


@pytest.mark.parametrize("target", TARGETS)
def test_does_not_run_as_root(target: str) -> None:
    words = [word for word, _ in image(target)]
    assert int(values(image(target), "USER")[-1]) > 0
    assert "RUN" not in words[words.index("USER") :]


@pytest.mark.parametrize("target", TARGETS)
def test_packages_come_from_their_stage_and_code_comes_last(target: str) -> None:
    copies = values(stages()[target], "COPY")
    assert copies == [f"--from={name} /install /usr/local" for name in ("model", f"packages-{target}")] + ["--from=code / ./"]
    assert "pip" not in " ".join(values(image(target), "RUN")), "pip runs in stages that are left behind"


def test_each_kind_of_torch_has_its_index() -> None:
    assert values(stages()["packages-cpu"], "ARG") == ["PIP_EXTRA_INDEX_URL"]
    assert not values(stages()["packages-cuda"], "ARG")
    installs = [values(stages()[f"packages-{target}"], "RUN") for target in TARGETS]
    assert installs == [["pip install --prefix=/install -r /requirements.txt"]] * 2


def test_every_model_in_the_image_is_pinned_by_its_hash_or_bundled() -> None:
    assert "--require-hashes" in values(stages()["model"], "RUN")[0]
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept = {path.name for path in (ROOT / "models").iterdir() if path.is_dir() and f"models/{path.name}/" not in ignored} - {"__pycache__"}
    assert kept == {"storyteller", "storyteller-base"}


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = {line.removeprefix("!").rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied())
    assert copied() == allowed


@pytest.mark.parametrize("target", TARGETS)
def test_command_is_exec_form_and_listens_outside(target: str) -> None:
    command = json.loads(values(image(target), "CMD")[-1])
    assert command[:3] == ["python", "-m", "serve"]
    assert command[command.index("--server.host") + 1] == "0.0.0.0"
    assert values(image(target), "EXPOSE") == ["8000"]


@pytest.mark.parametrize("target", TARGETS)
def test_health_is_readiness(target: str) -> None:
    check = values(image(target), "HEALTHCHECK")[-1]
    command = json.loads(check[check.index("CMD") + 3 :])
    assert command[:2] == ["python", "-c"] and "/ready" in command[2]
    compile(command[2], "HEALTHCHECK", "exec")
