"""Quality by quantization: which texts are scored, the line of each, and one real run; the measured memory beside the ledger."""

import gzip
import json
import math

import pytest

from app.benchmarks import memory
from app.scoring.sample import ScoreRow
from app.tokenizer import Tokenizer
from models.detector import quality
from models.detector.excerpts import GOAL_TOKENS, MIDDLE_GOAL, Excerpt
from models.detector.quality import KIND, recorded_stories, summary_line, take_evenly


def row(machine, tokens, perplexity, score, group="b/0"):
    scores = {"perplexity": perplexity, "binoculars": score, "likelihood_ratio": None}
    return ScoreRow(machine, group, "b", tokens, scores)


def test_texts_are_taken_at_equal_distances():
    assert take_evenly(range(10), 5) == [0, 2, 4, 6, 8]
    assert take_evenly(range(3), 5) == [0, 1, 2]
    assert take_evenly([], 5) == []


def test_only_stories_of_one_kind_and_length_are_used(tmp_path, bundled):
    text = "The king went out into the wood, and there he saw a fox that could speak. " * 11
    excerpts = [
        Excerpt(f"b/{number}/{kind}", kind, "b", "b/0", goal, text) for number, (kind, goal) in enumerate([(KIND, MIDDLE_GOAL)] * 2)
    ]
    others = [Excerpt("b/8", "T=0.7", "b", "b/0", MIDDLE_GOAL, text), Excerpt("b/9", KIND, "b", "b/0", GOAL_TOKENS[0], text)]
    path = tmp_path / "stories.jsonl"
    fields = ("id", "kind", "book", "group", "goal", "text")
    path.write_text("".join(json.dumps({name: getattr(excerpt, name) for name in fields}) + "\n" for excerpt in [*excerpts, *others]))
    stories = recorded_stories(path, Tokenizer(str(bundled)))
    assert [story.id for story in stories] == [excerpt.id for excerpt in excerpts]
    assert all(story.text.endswith("speak.") for story in stories), "cut where a sentence ends"
    assert recorded_stories(tmp_path / "none.jsonl", Tokenizer(str(bundled))) == []


def test_perplexity_is_of_all_human_tokens_together():
    rows = [row(False, 100, 10.0, 1.1), row(False, 300, 1000.0, 1.0), row(True, 500, 2.0, 0.8, "b/1"), row(True, 500, 2.0, 1.05, "b/2")]
    line = summary_line(rows)
    assert line["perplexity"] == pytest.approx(10 ** ((100 + 3 * 300) / 400)) and line["tokens"] == 400
    assert line["auroc"]["binoculars"][0] == 0.75, "a lower score looks like a machine's"
    assert "likelihood_ratio" not in line["auroc"], "there is no observer"
    assert (line["humans"], line["texts"]) == (2, 4)


def test_the_line_of_a_text():
    assert quality.text_line(row(False, 100, math.e, 1.1))["log_perplexity"] == pytest.approx(1)


def test_every_quantization_scores_the_same_texts(tiny_folder, other_folder, monkeypatch, capsys):
    excerpts = {
        kind: [Excerpt(f"b/{n}", kind, "b", f"b/{n}", MIDDLE_GOAL, f"{kind} {n} " * 6) for n in range(3)] for kind in ("human", KIND)
    }
    monkeypatch.setattr(quality, "passages", lambda *_: excerpts["human"])
    monkeypatch.setattr(quality, "recorded_stories", lambda *_: excerpts[KIND])
    argv = ["--model", str(tiny_folder), "--observer", str(other_folder), "--quantize", "none", "int4", "--texts", "2", "--device", "cpu"]
    assert quality.main(argv) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == 2 * [*["text"] * 4, "quality"]
    plain, quantized = lines[:4], lines[5:9]
    assert [(line["text"], line["machine"], line["tokens"]) for line in plain] == [
        (line["text"], line["machine"], line["tokens"]) for line in quantized
    ]
    assert plain[0]["log_perplexity"] != quantized[0]["log_perplexity"] and plain[0]["likelihood_ratio"] is not None
    assert (lines[4]["quantize"], lines[9]["quantize"], lines[9]["dtype"]) == ("none", "int4", "bfloat16")


def test_without_books_the_error_names_the_folder(tmp_path, capsys, bundled):
    assert quality.main(["--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'stories' / 'valid'} has no books; --data names the folder that holds stories/\n"


def test_the_footprint_is_the_ledgers(tiny_folder, capsys):
    ballast = b"x" * 300_000_000  # what was resident before the model was loaded is no part of its peak
    del ballast
    assert memory.main(["--model", str(tiny_folder), "--slots", "3", "--context", "64", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["slot_bytes"] == 64 * 4 * 2 * 2 * (16 + 16), "tokens, bytes of a float32, layers, heads, keys and values"
    assert found["context_bytes"] == 4 * found["slot_bytes"] and found["weight_bytes"] > 0 and found["activation_bytes"] > 0
    assert found["loaded_bytes"] > 0 < found["process_bytes"]
    assert 0 < found["peak_bytes"] < found["loaded_bytes"] + 150_000_000
    assert memory.main(["--model", str(tiny_folder / "no")]) == 2


def test_of_other_models_every_set_of_pairs_gives_as_many_texts_of_each_class(tiny_folder, tmp_path, capsys):
    (tmp_path / "detect").mkdir()
    for name in ("news_a", "news_b"):
        lines = [
            {"human": f"A person wrote {name} {n}. " * 9, "machine": f"It was {name} {n}. " * 9, "group": f"{name}{n}"} for n in range(9)
        ]
        with gzip.open(tmp_path / "detect" / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    options = ["--model", str(tiny_folder), "--source", "detect", "--data", str(tmp_path), "--quantize", "none", "--texts", "6"]
    assert quality.main(options) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["machine"] for line in lines[:-1]] == [False, False, False, True, True, True] * 2
    assert set(lines[-1]["auroc"]) == {"fast_detect", "perplexity", "log_rank"} and lines[-1]["humans"] == 6
    assert quality.main([*options, "--data", str(tmp_path / "none")]) == 2
