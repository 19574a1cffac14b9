import os
import re
import subprocess
from pathlib import Path

import pytest

from app.models.staging import home

ROOT = Path(__file__).parents[1]
TARGETS = [
    "install",
    "run",
    "test",
    "check",
    "train",
    "load",
    "bench",
    "bench-cache",
    "chaos",
    "clients",
    "notebooks",
    "gpu-check",
    "clean",
]


def make(*arguments):
    done = subprocess.run(["make", "--dry-run", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_targets():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M).group(1).split()
    assert set(phony) == {"help", *TARGETS} and len(TARGETS) <= 13


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_expands(target):
    assert make(target)


def test_check_puts_the_code_into_shape_and_audits_on_request():
    assert "ruff format --check ." in make("check") and "pip-audit" not in make("check")
    assert "ruff format  ." in make("check", "FIX=1") and "ruff check --fix ." in make("check", "FIX=1")
    assert ".venv-audit/bin/pip-audit --strict" in make("check", "AUDIT=1")


def test_help_names_every_target():
    shown = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(f"make {target}" in shown for target in TARGETS)


def test_run_passes_on_what_is_given_and_nothing_else():
    clean = ["MODEL=", "OBSERVER=", "QUANTIZE=", "DEVICE=", "PORT="]
    assert "--" not in make("run", *clean).rpartition("-m serve")[2]
    shown = make("run", *clean, "MODEL=Qwen/Qwen3-0.6B", "QUANTIZE=nf4", "PORT=9000")
    options = shown.rpartition("-m serve")[2].replace("\\\n", " ").split()
    assert options == ["--model", '"Qwen/Qwen3-0.6B"', "--quantize", '"nf4"', "--port", '"9000"']
    assert "exec .venv/bin/python" in shown, "a signal has to reach python"


def test_bench_compares_unless_a_server_is_named():
    assert "-m loadtest.peers.benchmark" in make("bench") and "--" not in make("bench").rpartition("-m loadtest.peers.benchmark")[2]
    shown = make("bench", "MODEL=folder", "GGUF=a.gguf", "ROWS=1 4", "BENCH=--quick").rpartition("-m loadtest.peers.benchmark")[2]
    assert shown.replace("\\\n", " ").split() == ["--model", '"folder"', "--gguf", '"a.gguf"', "--rows", "1", "4", "--quick"]
    shown = make("bench", "URL=http://host:1")
    assert "-m loadtest.load.closedloop --url http://host:1 --clients 1 8 32" in shown and "loadtest.peers.benchmark" not in shown


def test_bench_runs_a_study():
    assert "-m loadtest.studies.slots" in make("bench", "STUDY=slots", "MODEL=", "BENCH=")
    shown = make("bench", "STUDY=gap", "MODEL=folder", "BENCH=--quick").rpartition("-m loadtest.studies.gap")[2]
    assert shown.split() == ["--model", '"folder"', "--quick"]


def test_bench_names_the_studies_when_there_is_none_of_that_name():
    done = subprocess.run(["make", "--dry-run", "bench", "STUDY=nope"], cwd=ROOT, capture_output=True, text=True)
    studies = sorted(path.stem for path in (ROOT / "loadtest/studies").glob("*.py"))
    assert done.returncode == 2 and "STUDY=nope is no study" in done.stderr
    assert sorted(done.stderr.rpartition(": ")[2].split(".")[0].split()) == studies
    assert all(f"loadtest.studies.{study}" in make("bench", f"STUDY={study}") for study in studies)


def test_notebooks_become_pages():
    shown = make("notebooks")
    run, pages = (" ".join(part.split()) for part in shown.replace("\\\n", " ").strip().splitlines()[-2:])
    assert "--execute --output-dir runs/notebooks notebooks/" in run
    assert "--output-dir docs/notebooks runs/notebooks/" in pages and "06-detector.ipynb" in pages


def test_bench_cache_passes_on_what_is_given_and_nothing_else():
    assert "--" not in make("bench-cache", "MODEL=", "SIZE=", "CACHE=").rpartition("-m loadtest.cache.benchmark")[2]
    shown = make("bench-cache", "MODEL=one two", "SIZE=135M 1.7B", "CACHE=--quick").rpartition("-m loadtest.cache.benchmark")[2]
    assert shown.split() == ["--model", "one", "two", "--size", "135M", "1.7B", "--quick"]


def test_chaos_passes_on_what_is_given_and_nothing_else():
    assert "--" not in make("chaos", "MODEL=", "CHAOS=").rpartition("-m loadtest.chaos")[2]
    shown = make("chaos", "MODEL=folder", "CHAOS=--minutes 2").rpartition("-m loadtest.chaos")[2]
    assert shown.split() == ["--model", '"folder"', "--minutes", "2"]


def test_clients_are_installed_apart():
    shown = make("--always-make", "clients", "TEST=-x").replace("\\\n", " ")
    assert ".venv-clients/bin/python -m pip install -q -r requirements-clients.txt" in shown
    assert ".venv-guidellm/bin/python -m pip install -q -r requirements-guidellm.txt" in shown
    assert "npm ci" in shown and "skipped" in shown
    assert shown.splitlines()[-1].rstrip().endswith("-m pytest tests/test_clients.py -x")


def test_clean_removes_every_environment():
    removed = make("clean").splitlines()[0].split()
    assert {".venv", ".venv-clients/", ".venv-guidellm/", "tests/clients/node/node_modules/"} <= set(removed)
    assert not set(removed) & {"models/", "runs/", ".", "/"}
    assert make("clean").splitlines()[-1].replace("$(id -u)", str(os.getuid())) == f"rm -rf {home()}"  # copies of models in memory


def test_running_needs_no_test_tools():
    assert "requirements-dev" not in make("--always-make", "install")
    assert "requirements-dev" in make("--always-make", "check")


def test_tests_run_in_four_processes():
    assert "-m pytest -n 4 --no-loadscope-reorder ;" in make("test", "TEST=")


@pytest.mark.parametrize(("types", "tests", "failed"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_types_are_checked_beside_the_tests_and_either_fails_the_target(tmp_path, types, tests, failed):
    """The programs of a virtual environment, which here end as they are told to."""
    (tmp_path / "bin").mkdir()
    for name, ends in {"ruff": 0, "chromium": 0, "mypy": types, "python": tests}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho this is {name}\nexit {ends}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for stamp in ("runtime.stamp", "dev.stamp"):
        (tmp_path / stamp).touch()
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "MAKEFLAGS": ""}
    done = subprocess.run(["make", "test", f"VENV={tmp_path}", "TEST="], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) is failed, done.stderr
    assert 0 < done.stdout.index("this is python") < done.stdout.index("this is mypy"), "what the types' check says comes last"
