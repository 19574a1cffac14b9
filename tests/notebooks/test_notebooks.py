"""Every notebook runs on the recorded runs, on synthetic runs and on none; it has a question as title and an answer at the end.

Cells run in this process, as a kernel would run them; one notebook runs in a kernel and is converted to a page.
"""

import io
import json
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import IPython.display
import nbformat
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from notebooks import analysis
from tests.notebooks.rows import MANIFEST, ladder, starts, texts, write

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PAGES = NOTEBOOKS.parent / "docs/notebooks"
RECORDED = sorted((NOTEBOOKS / "recorded").glob("*.jsonl"))


@dataclass
class Shown:
    figures: list[Figure] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __call__(self, *things):
        for thing in things:
            if isinstance(thing, Figure):
                self.figures.append(thing)
            elif isinstance(thing, IPython.display.Markdown):
                self.texts.append(thing.data)


@cache
def exporter():
    """One for all pages: each would compile the same templates."""
    return HTMLExporter(template_name="page", extra_template_basedirs=[str(NOTEBOOKS)])


@pytest.fixture
def execute(monkeypatch, tmp_path):
    """Returns a function that runs the cells of a notebook beside empty `runs` and `recorded` folders, with 10 resamples."""
    for function in (analysis.bootstrap, analysis.median_difference, analysis.cluster_bootstrap):
        monkeypatch.setattr(function, "__kwdefaults__", {**function.__kwdefaults__, "resamples": 10})
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setitem(sys.modules, "analysis", analysis)
    shown = Shown()
    monkeypatch.setattr(IPython.display, "display", shown)

    def run(name):
        names = {}
        for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells:
            if cell.cell_type == "code":
                exec("\n".join(line for line in cell.source.splitlines() if not line.startswith("%")), names)
        for figure in shown.figures:
            figure.savefig(io.BytesIO(), dpi=40)
        return shown

    return run


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


def test_without_a_run_it_says_how_to_make_one(name, execute):
    shown = execute(name)
    assert "` makes one" in shown.texts[-1] and not shown.figures


def test_links_of_its_page_lead_somewhere(name):
    """Of the page that is made now, and of the one in docs/notebooks."""
    html, _ = exporter().from_filename(str(NOTEBOOKS / name))
    kept = (PAGES / name).with_suffix(".html").read_text()
    targets = re.findall(r'href="(?!https?:|#)([^"#]+)', html + kept)
    assert [target for target in targets if not (PAGES / target).exists()] == []
    assert name != "03-batching.ipynb" or "07-cost.html" in targets


@pytest.mark.skipif(not RECORDED, reason="notebooks/recorded has no runs yet")
def test_on_the_recorded_runs(name, execute, tmp_path):
    (tmp_path / "notebooks" / "recorded").symlink_to(NOTEBOOKS / "recorded")
    shown = execute(name)
    assert shown.figures and "` makes one" not in shown.texts[-1]


def test_users_at_once(execute, tmp_path):
    rows = ladder({1: 100, 2: 190, 4: 360, 8: 400})
    write(tmp_path / "runs" / "load-1.jsonl", rows)
    shown = execute("01-latency.ipynb")
    assert "knee at **4 users**: 359 tokens/s" in shown.texts[-1], "360 in a second and 3 ms"
    assert "TTFT p95 400 [400, 400] ms, TPOT p50 20.0 [20.0, 20.0] ms" in shown.texts[-1], "the warm-up is left out"
    assert "reader: 8 users (the most that was tried); strict: 2 users" in shown.texts[-1]
    assert len(shown.figures) == 2


def test_users_at_once_without_a_knee(execute, tmp_path):
    write(tmp_path / "runs" / "load-1.jsonl", ladder({1: 100, 2: 140, 4: 200, 8: 280}))
    shown = execute("01-latency.ipynb")
    assert "**no knee among the stages**" in shown.texts[-1] and "From 1 to 8 users the tokens a second grow 2.8-fold" in shown.texts[-1]
    assert "knee" not in [label.get_text() for label in shown.figures[0].legends[0].get_texts()]
    assert "fake by Litmus, float32: fake (float32" in shown.texts[0]


def test_users_at_once_beside_a_peer_and_in_an_open_loop(execute, tmp_path):
    peer = {**MANIFEST, "model": {"id": "fake.gguf", "owned_by": "llamacpp"}, "quantization": "Q4_0"}
    write(tmp_path / "runs" / "load-1.jsonl", ladder({1: 100, 2: 190, 4: 360, 8: 400}))
    write(tmp_path / "runs" / "load-2.jsonl", ladder({1: 50, 2: 95, 4: 180, 8: 400}), peer)
    arrivals = [{**row, "rate": row["clients"] / 2, "clients": 0} for row in ladder({1: 100, 8: 400})]
    write(tmp_path / "runs" / "load-3.jsonl", arrivals)
    shown = execute("01-latency.ipynb")
    assert "Beside fake.gguf by llama-server, Q4_0, 4 users: 2.00 times the tokens a second" in shown.texts[-1]
    assert "8 users: 1.00 times" in shown.texts[-1]
    assert "strict: 0.5 arrivals a second" in shown.texts[-1]


def test_ramdisk(execute, tmp_path):
    manifest, rows = starts()
    write(tmp_path / "runs" / "cache-1.jsonl", rows, manifest)
    shown = execute("02-ramdisk.ipynb")
    assert "36 starts; 1 more were refused" in shown.texts[0]
    lines = {line.partition("**: ")[0]: line for line in shown.texts[-1].splitlines()}
    assert "saves 1.00 [0.99" in lines["- **by mmap"] and "s of 2.00 s beside a cold disk" in lines["- **by mmap"]
    assert all(
        "makes no measurable difference beside a warm disk (" in lines[f"- **{case}"] for case in ("by mmap", "by read", "quantize nf4")
    )
    assert "tmpfs 4.00 s and 3,000 MB" in shown.texts[-1]


@pytest.mark.skipif(not RECORDED, reason="notebooks/recorded has no runs yet")
def test_the_cost_by_one_repeat_has_no_interval(execute, tmp_path):
    manifest, rows = recorded_speeds()
    write(tmp_path / "runs" / "lengths-1.jsonl", [row for row in rows if row.get("repeat", 1) == 1], manifest)
    answer = execute("07-cost.ipynb").texts[-1]
    assert "n = 1:" in answer and "(engine, n = 1)" in answer and "[" not in answer


def recorded_speeds():
    """The manifest and the rows of the recorded run of lengths that measured speed."""
    for path in RECORDED:
        manifest, *rows = [json.loads(line) for line in path.read_text().splitlines()]
        if manifest["tool"] == "lengths" and any(row["kind"] == "speed" for row in rows):
            return manifest, rows
    pytest.fail("no run of lengths is recorded")


@pytest.mark.skipif(not RECORDED, reason="notebooks/recorded has no runs yet")
def test_memory_that_was_measured_by_itself(execute, tmp_path):
    """The memory is that of the newest run with a peak, and of no run without one."""
    manifest, rows = recorded_speeds()
    write(tmp_path / "runs" / "lengths-1.jsonl", [{**row, "peak_bytes": 1} if row["kind"] == "speed" else row for row in rows], manifest)
    assert "Memory" not in execute("07-cost.ipynb").texts[-1], "a peak of the whole process is none"
    parts = {"weight_bytes": 50e6, "activation_bytes": 20e6, "context_bytes": 30e6, "slot_bytes": 15e6, "process_bytes": 400e6}
    prints = [
        {"kind": "footprint", "prompt_tokens": 64, "at_once": count, "context": 128, **parts, "peak_bytes": 450e6} for count in (1, 2)
    ]
    write(tmp_path / "runs" / "lengths-2.jsonl", prints)
    shown = execute("07-cost.ipynb")
    assert "2 of them with weights and activations with 100 MB; measured were 50 MB" in shown.texts[-1]
    assert any(text.startswith("Memory: fake") for text in shown.texts)


def test_detector(execute, tmp_path):
    manifest, rows = texts()
    write(tmp_path / "runs" / "detector-1.jsonl", rows, manifest)
    shown = execute("06-detector.ipynb")
    lines = {line.partition("**: ")[0]: line for line in shown.texts[-1].splitlines()}
    assert "AUROC 1.00 [1.00, 1.00] by combined" in lines["- **xsum, gpt-4"] and "100% [100%, 100%] found" in lines["- **xsum, gpt-4"]
    assert 0.4 < float(lines["- **writing, gpt2-xl"].split("AUROC ")[1].split()[0]) < 0.6
    assert "Of 4 kinds of people's texts, 1 lie beyond it in more than 2% of cases; the worst is manuals with 100.0%" in shown.texts[-1]


def test_a_notebook_runs_in_a_kernel_and_becomes_a_page(tmp_path):
    """As `make notebooks` does."""
    name = "02-ramdisk.ipynb"
    page = nbformat.read(NOTEBOOKS / name, as_version=4)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "analysis.py").write_text((NOTEBOOKS / "analysis.py").read_text())
    manifest, rows = starts()
    manifest["plan"]["factors"] |= {"ways": ["mmap"], "weights": ["none"]}
    write(tmp_path / "runs" / "cache-1.jsonl", rows, manifest)
    places = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(page, timeout=300, startup_timeout=300, kernel_name="python3", resources=places).execute()
    html, _ = exporter().from_notebook_node(page)
    assert html.startswith("<!DOCTYPE html>") and "</html>" in html
    assert html.count("data:image/png") == 4 and "<details><summary>code</summary>" in html
    assert len(html) < 1_000_000
