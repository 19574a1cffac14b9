"""Every notebook runs, with a run to read and without one; one question in the title, an answer at the end."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
MANIFEST = {
    "kind": "manifest",
    "time": "2026-11-21T00:00:00+00:00",
    "model": {"id": "fake", "dtype": "float32", "quantize": "none", "slots": 2, "device": "cpu"},
    "machine": {"cpus": 2, "processor": "a processor"},
}


def chat(clients, number):
    times = {"started_s": float(number), "e2e_ms": 500.0 * clients, "ttft_ms": 100.0 * clients, "tpot_ms": 20.0 * clients, "itl_ms": [20.0]}
    return {"kind": "chat", "clients": clients, "status": 200, "outcome": "ok", "completion_tokens": 20, "prompt_tokens": 5, **times}


def execute(name, folder):
    """A copy beside a `runs` of our own, as the notebook reads ../runs. Returns the executed page."""
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    page = nbformat.read(folder / "notebooks" / name, as_version=4)
    NotebookClient(page, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder / "notebooks")}}).execute()
    return page


def answer(page):
    return "".join(output["data"].get("text/markdown", "") for output in page.cells[-1].outputs)


@pytest.fixture(params=sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def name(request):
    return request.param


def test_form(name):
    page = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(page)
    title = page.cells[0].source.splitlines()[0]
    assert title.startswith("# ") and title.endswith("?")
    prose, code = (sum(len(cell.source.split()) for cell in page.cells if cell.cell_type == kind) for kind in ("markdown", "code"))
    assert prose > code
    assert not any(cell.get("outputs") for cell in page.cells), "outputs belong in runs/notebooks/"


def test_without_a_run_it_says_how_to_make_one(name, tmp_path):
    assert "`make " in answer(execute(name, tmp_path))


def test_latency_answers_from_the_data(tmp_path):
    (tmp_path / "runs").mkdir()
    rows = [MANIFEST, *(chat(clients, number) for clients in (1, 2) for number in range(4))]
    (tmp_path / "runs" / "bench-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = execute("01-latency.ipynb", tmp_path)
    assert any("image/png" in output.get("data", {}) for cell in page.cells for output in cell.get("outputs", ())), "the figure is shown"
    assert "waits 100 [100, 100] ms for the first token and 20.0 [20.0, 20.0] ms" in answer(page)
    assert "a token takes 2.0 times as long" in answer(page)
