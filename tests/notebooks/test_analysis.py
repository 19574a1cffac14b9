import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooks import analysis
from tests.notebooks.rows import MANIFEST, chat, write

ROWS = [
    chat(1, 0.0),
    chat(1, 1.0, ttft_ms=300.0),
    chat(1, 1.0, ttft_ms=9000.0, e2e_ms=9000.0, warm_up=True),
    chat(2, 2.0, ttft_ms=2000.0, e2e_ms=2000.0),
    chat(2, 2.0, tpot_ms=70.0),
    chat(2, 3.0, outcome="shed", status=429, ttft_ms=None, tpot_ms=None, completion_tokens=None),
    chat(2, 3.0, outcome="left", ttft_ms=50.0, tpot_ms=None, completion_tokens=None),
    chat(2, 3.0, tpot_ms=None, completion_tokens=1),
    {**chat(2, 4.0), "kind": "score", "ttft_ms": None},
]


@pytest.fixture
def run(tmp_path):
    return analysis.read_run(write(tmp_path / "runs" / "load-1.jsonl", ROWS))


def test_read(run):
    assert len(run.rows) == 9 and len(analysis.counted_chats(run)) == 7, "the score is no chat, the warm-up does not count"
    assert "fake (float32, quantize none, 2 slots, cpu); 2 x a processor; 2026-11-21 00:00:00 UTC; `runs/load-1.jsonl`" in run.title()


@pytest.mark.parametrize(
    ("facts", "subject"),
    [
        ({"model": "runs/llama-135m"}, "llama-135m"),
        ({"model": None, "plan": {"models": {"one": "digest", "two": "digest"}}}, "one, two"),
        ({"model": {"id": "/models/fake.gguf"}, "quantization": "Q4_0"}, "fake.gguf (quantize Q4_0)"),
        ({"model": {"id": "Qwen/Qwen3-0.6B"}, "quantization": None}, "Qwen3-0.6B"),
        ({"model": None}, "no model"),
    ],
)
def test_titles_of_other_tools(tmp_path, facts, subject):
    title = analysis.read_run(write(tmp_path / "a.jsonl", [], {**MANIFEST, **facts, "commit": "a" * 40 + "+"})).title()
    assert title.startswith(f"{subject}; 2 x") and "; commit aaaaaaaaaaaa+;" in title


def test_server_label(run, tmp_path):
    assert analysis.server_label(run) == "fake by Litmus, float32"
    peer = {**MANIFEST, "model": {"id": "a/b.gguf"}, "quantization": "Q4_0"}
    assert analysis.server_label(analysis.read_run(write(tmp_path / "b.jsonl", [], peer))) == "b.gguf by a server without a name, Q4_0"


def test_a_cut_last_line_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS[:2])
    path.write_text(path.read_text() + '{"kind": "ch')
    assert len(analysis.read_run(path).rows) == 2
    path.write_text(path.read_text() + "\n" + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 4"):
        analysis.read_run(path)


@pytest.mark.parametrize("text", ["", '{"kind": "chat"}\n'])
def test_no_manifest(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="manifest"):
        analysis.read_run(path)


def test_latest(tmp_path):
    folders = [tmp_path / "runs", tmp_path / "recorded"]
    assert analysis.latest("load", folders=folders) is None
    write(folders[1] / "load-5.jsonl", ROWS)
    assert analysis.latest("load", folders=folders).path.parent == folders[1], "recorded runs, if there are no new ones"
    quick, called = {**MANIFEST, "quick": True}, {"kind": "call", "command": "python -m loadtest.cache.benchmark --quick"}
    write(folders[0] / "load-7.jsonl", ROWS, quick)
    assert analysis.latest("load", folders=folders).path.stem == "load-5", "a quick run does not hide a recorded measurement"
    assert analysis.latest("load", folders=folders[:1]).path.stem == "load-7", "a quick one if there is no other"
    assert analysis.latest("load", lambda run: run.quick, folders).path.stem == "load-7"
    runs = {"load-1": (ROWS, MANIFEST), "load-2": (ROWS[:1], MANIFEST), "load-3": ([], MANIFEST), "bench-9": (ROWS, MANIFEST)}
    for name, (rows, manifest) in {**runs, "load-7": (ROWS, quick), "load-8": ([called, *ROWS], MANIFEST)}.items():
        write(folders[0] / f"{name}.jsonl", rows, manifest)
    found = analysis.runs("load", folders=folders)
    assert [run.path.stem for run in found] == ["load-2", "load-1", "load-8", "load-7"], "quick ones last"
    assert analysis.latest("load", folders=folders).path.stem == "load-2"
    assert analysis.latest("load", lambda run: len(run.rows) > 1, folders).path.stem == "load-1"
    assert analysis.latest("load", lambda run: run.path.stem == "load-5", folders).path.stem == "load-5"
    assert "no measurement" in found[2].title() and "no measurement" not in found[0].title()


def test_bootstrap_of_known_samples():
    same = analysis.bootstrap([5.0] * 10, analysis.percentile(0.5))
    assert (same.value, same.low, same.high, same.n) == (5, 5, 5, 10)
    normal = np.random.default_rng(1).normal(100, 10, size=400)
    interval = analysis.bootstrap(normal, lambda values: float(values.mean()))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 10 / 20, rel=0.2), "the textbook interval of a mean"


def test_bootstrap_of_nothing_is_a_dash():
    nothing = analysis.bootstrap([None, math.nan], analysis.percentile(0.5))
    assert nothing.n == 0 and str(nothing) == "-"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.sampled_from([0.5, 0.95]))
def test_bootstrap_stays_within_the_values_and_repeats(values, share):
    first, again = (analysis.bootstrap(values, analysis.percentile(share), resamples=50) for _ in range(2))
    assert first == again
    assert min(values) <= first.low <= first.high <= max(values)


def test_difference_of_medians():
    assert analysis.median_difference([1.0] * 5, [3.0] * 4) == analysis.Interval(2, 2, 2, 4)
    draw = np.random.default_rng(0)
    found = analysis.median_difference(draw.normal(0, 1, 200), draw.normal(0, 1, 200))
    assert found.low < 0 < found.high
    assert analysis.median_difference([1.0], []).n == 0


def test_groups_are_drawn_whole():
    """Ten copies of each value add no information: the interval is that of the groups, not of the rows."""
    values = np.random.default_rng(1).normal(0, 1, 100)
    alone = analysis.bootstrap(values, lambda found: float(found.mean()))
    copied = analysis.cluster_bootstrap(
        np.repeat(values, 10), np.repeat(np.arange(100), 10), lambda found: float(found.mean()), resamples=1000
    )
    assert copied.n == 1000 and copied.value == pytest.approx(alone.value)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_auroc():
    human, machine = [1, 2, 3, 3], [3, 4]
    pairs = np.array([(score, 0) for score in human] + [(score, 1) for score in machine], float)
    assert analysis.auroc(pairs) == (2 + 0.5 * 2 + 4) / 8, "a tie counts half"
    assert math.isnan(analysis.auroc(pairs[:4]))


def test_tpr_at_fpr():
    pairs = np.array([(score, 0) for score in range(100)] + [(98, 1), (99, 1), (100, 1), (101, 1)], float)
    assert analysis.tpr_at_fpr(0.01)(pairs) == 0.5, "two lie beyond the highest of a hundred"
    assert analysis.tpr_at_fpr(0.05)(pairs) == 1
    assert math.isnan(analysis.tpr_at_fpr(0.001)(pairs)), "too few human texts to say"
    assert math.isnan(analysis.tpr_at_fpr(0.05)(pairs[:100]))


def test_medians():
    found = analysis.medians(pd.DataFrame({"name": ["b", "b", "a"], "s": [1.0, 3.0, 7.0]}), "name", "s")
    assert list(found.index) == ["b", "a"] and (found["b"].value, found["a"].value) == (2, 7)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.000"), (0.9876, "0.988"), (9.876, "9.88"), (98.76, "98.8"), (9876.5, "9,876"), (-0.5, "-0.500")]
)
def test_format_number(value, text):
    assert analysis.format_number(value) == text


def test_outcome_counts(run):
    table = analysis.outcome_counts(analysis.counted_chats(run))
    assert table.to_dict("index") == {1: {"ok": 2, "shed": 0, "failed": 0, "left": 0}, 2: {"ok": 3, "shed": 1, "failed": 0, "left": 1}}


def test_latency_table(run):
    table = analysis.latency_table(analysis.counted_chats(run))
    assert table.loc[1, "TTFT p50 ms"].value == 200 and table.loc[1, "n"] == 2
    assert table.loc[1, "tokens/s in all"] == 19.0
    assert table.loc[2, "n"] == 3 and table.loc[2, "TPOT p50 ms"].n == 2


def test_goodput_counts_shed_requests_as_missed(run):
    table = analysis.goodput(analysis.counted_chats(run), ttft_ms=1000, tpot_ms=60)
    assert table.loc[1, "share in time"].value == 1 and table.loc[1, "chats/s in time"] == 1
    share = table.loc[2, "share in time"]
    assert (share.value, share.n) == (0.25, 4), "late, slow and shed miss; the one-token answer counts; the client that left is excluded"
    assert table.loc[2, "chats/s in time"] == pytest.approx(1 / 2)


def test_an_open_loop_is_grouped_by_its_rate():
    rows = pd.DataFrame([chat(0, 0.0, rate=0.5), chat(0, 1.0, rate=2.0)])
    assert analysis.stage_column(rows) == "rate"
    assert list(analysis.latency_table(rows).index) == list(analysis.outcome_counts(rows).index) == [0.5, 2.0]
    assert analysis.stage_column(pd.DataFrame([chat(2, 0.0)])) == analysis.stage_column(pd.DataFrame([{"clients": 1}])) == "clients"


@pytest.mark.parametrize(
    ("throughput", "users"),
    [
        ([10, 20, 30, 31], 4),
        ([10, 20, 40, 80], 8),
        ([10, 11, 12, 13], None),
        ([10, 14, 20, 29], None),
        ([10, 14, 28, 29], 4),
        ([0, 0, 0, 0], 8),
    ],
)
def test_knee(throughput, users):
    assert analysis.knee([1, 2, 4, 8], throughput) == users


def test_one_value_has_no_interval():
    alone = analysis.bootstrap([207.0], analysis.percentile(0.5))
    assert str(alone) == "207" and alone.n == 1
    assert np.isnan(analysis.error_bars([alone])[1]).all()
    assert str(analysis.bootstrap([207.0, 207.0], analysis.percentile(0.5))) == "207 [207, 207]"


def interval(value):
    return analysis.Interval(value, value - 1, value + 2, 5)


def test_error_bars_are_lengths():
    values, ends = analysis.error_bars([interval(5), interval(7)])
    assert values.tolist() == [5, 7] and ends.tolist() == [[1, 1], [2, 2]]


def test_plots():
    nothing = analysis.bootstrap([], analysis.percentile(0.5))
    figure, axes = analysis.panels(3)
    analysis.plot_line(axes[0], [1, 2, 3], [interval(5), nothing, interval(7)], "one")
    analysis.plot_line(axes[0], [1], [analysis.bootstrap([5.0], analysis.percentile(0.5))], "alone")
    assert axes[0].lines[0].get_xdata().tolist() == [1, 3], "no point where there is nothing"
    analysis.plot_bars(axes[1], ["a", "b"], {"one": [interval(1), interval(2)], "two": [interval(3), nothing]}, "s")
    assert [patch.get_height() for patch in axes[1].patches][:3] == [1, 2, 3]
    analysis.plot_stack(axes[2], pd.DataFrame({"part": [1.0, 2.0], "rest": [3.0, 4.0]}, index=["a", "b"]), "s")
    assert [patch.get_y() for patch in axes[2].patches] == [0, 0, 1, 2]
    figure.draw_without_rendering()
