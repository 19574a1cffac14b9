"""The folders are walls: what a folder may not import is reported by ruff, and the tree itself is clean."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("app", "serve", "ui", "jobs", "loadtest", "notebooks")
JOBS = {"schemas", "settings", "errors", "ledger", "log"}
MAY_USE = {"ui": {"schemas", "settings", "errors", "neighbours", "plaintext", "csvtable"}, "loadtest": {"schemas"}, "jobs": JOBS}
OFFENCES = {
    "app": ["litserve", "gradio", "locust", "fastapi", "starlette", "uvicorn", "jobs", "serve", "ui", "loadtest", "notebooks"],
    "serve": ["gradio", "locust", "jobs", "ui", "loadtest", "notebooks"],
    "ui": ["litserve", "locust", "jobs", "serve", "loadtest", "notebooks", "app.engine", "app.scoring"],
    "jobs": ["litserve", "gradio", "locust", "fastapi", "torch", "serve", "ui", "loadtest", "notebooks", "app.engine", "app.models"],
    "loadtest": ["litserve", "gradio", "jobs", "serve", "ui", "notebooks", "app.engine", "app.settings", "app.errors"],
    "notebooks": ["litserve", "gradio", "locust", "jobs", "serve", "ui", "loadtest", "app", "app.schemas"],
}


def ruff(*arguments, code=None):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "--select", "TID", *arguments]
    return subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True)


def offence(folder, code):
    return ruff("--stdin-filename", f"{folder}/offender.py", "-", code=code).stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_wall_stands(folder):
    names = OFFENCES[folder]
    shown = offence(folder, "".join(f"import {name}\n" for name in names))
    assert {f"{folder}/offender.py:{line}:8: TID251" for line in range(1, len(names) + 1)} == {
        " ".join(line.split()[:2]) for line in shown.splitlines() if "TID251" in line
    }


@pytest.mark.parametrize(
    ("folder", "code"),
    [
        ("ui", "from app import engine"),
        ("ui", "from app.engine.engine import Engine"),
        ("loadtest", "def late():\n    from app import settings\n"),
        ("serve", "import os\nos.environ['A'] = 'b'\n"),
        ("app", "from os import getenv"),
    ],
)
def test_other_ways_in_are_seen(folder, code):
    assert "TID251" in offence(folder, code)


def test_no_relative_way_round():
    assert "TID252" in offence("ui", "from ..serve import server")


@pytest.mark.parametrize(
    ("folder", "code"),
    [
        ("serve", "import litserve\nfrom app.engine.engine import Engine\n"),
        ("ui", "import gradio\nfrom app.schemas import Score\nfrom app.settings import Settings\nfrom app.errors import LitmusError\n"),
        ("loadtest", "import locust\nfrom app.schemas import Score\n"),
        ("jobs", "import celery\nfrom app.ledger.database import Database\nfrom app.settings import Settings\n"),
    ],
)
def test_the_ways_down_are_open(folder, code):
    assert "All checks passed" in offence(folder, code)


def test_the_tree_is_clean():
    done = ruff(*FOLDERS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", MAY_USE)
def test_every_module_of_app_is_behind_the_wall(folder):
    modules = {path.stem for path in (ROOT / "app").iterdir() if path.suffix == ".py" or (path.is_dir() and [*path.glob("*.py")])}
    with (ROOT / folder / "ruff.toml").open("rb") as file:
        banned = tomllib.load(file)["lint"]["flake8-tidy-imports"]["banned-api"]
    missing = sorted(f"app.{module}" for module in modules - MAY_USE[folder] - {"__init__"} if f"app.{module}" not in banned)
    assert not missing, f"ban these in {folder}/ruff.toml: {missing}"
