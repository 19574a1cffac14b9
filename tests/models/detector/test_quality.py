"""Quality by quantization: which texts are read, what is said of each, and one real reading; the footprint beside the ledger."""

import json
import math

import pytest

from app.benchmarks import memory
from app.scoring.sample import Row
from app.tokenizer import Tokenizer
from models.detector import quality
from models.detector.excerpts import GOALS, Piece
from models.detector.quality import GOAL, KIND, kept, spaced, summary


def row(machine, tokens, perplexity, score, group="b/0"):
    scores = {"perplexity": perplexity, "binoculars": score, "likelihood_ratio": None}
    return Row(machine, group, "b", tokens, scores)


def test_texts_are_taken_at_equal_distances():
    assert spaced(range(10), 5) == [0, 2, 4, 6, 8]
    assert spaced(range(3), 5) == [0, 1, 2]
    assert spaced([], 5) == []


def test_only_stories_of_one_kind_are_read(tmp_path, bundled):
    text = "The king went out into the wood, and there he saw a fox that could speak. " * 11
    pieces = [Piece(f"b/{number}/{kind}", kind, "b", "b/0", goal, text) for number, (kind, goal) in enumerate([(KIND, GOAL)] * 2)]
    others = [Piece("b/8", "T=0.7", "b", "b/0", GOAL, text), Piece("b/9", KIND, "b", "b/0", GOALS[0], text)]
    path = tmp_path / "stories.jsonl"
    fields = ("id", "kind", "book", "group", "goal", "text")
    path.write_text("".join(json.dumps({name: getattr(one, name) for name in fields}) + "\n" for one in [*pieces, *others]))
    found = kept(path, Tokenizer(str(bundled)))
    assert [one.id for one in found] == [one.id for one in pieces]
    assert all(one.text.endswith("speak.") for one in found), "cut where a sentence ends"
    assert kept(tmp_path / "none.jsonl", Tokenizer(str(bundled))) == []


def test_perplexity_is_of_all_human_tokens_together():
    rows = [row(False, 100, 10.0, 1.1), row(False, 300, 1000.0, 1.0), row(True, 500, 2.0, 0.8, "b/1"), row(True, 500, 2.0, 1.05, "b/2")]
    found = summary(rows)
    assert found["perplexity"] == pytest.approx(10 ** ((100 + 3 * 300) / 400)) and found["tokens"] == 400
    assert found["auroc"]["binoculars"][0] == 0.75, "lower is a machine's"
    assert "likelihood_ratio" not in found["auroc"], "nothing was observed"
    assert (found["humans"], found["texts"]) == (2, 4)


def test_a_line_of_a_text():
    assert quality.line(row(False, 100, math.e, 1.1))["log_perplexity"] == pytest.approx(1)


def test_every_quantization_reads_the_same_texts(tiny_folder, other_folder, monkeypatch, capsys):
    pieces = {kind: [Piece(f"b/{n}", kind, "b", f"b/{n}", GOAL, f"{kind} {n} " * 6) for n in range(3)] for kind in ("human", KIND)}
    monkeypatch.setattr(quality, "passages", lambda *_: pieces["human"])
    monkeypatch.setattr(quality, "kept", lambda *_: pieces[KIND])
    words = ["--model", str(tiny_folder), "--observer", str(other_folder), "--quantize", "none", "int4", "--texts", "2", "--device", "cpu"]
    assert quality.main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == 2 * [*["text"] * 4, "quality"]
    plain, rounded = lines[:4], lines[5:9]
    assert [(one["text"], one["machine"], one["tokens"]) for one in plain] == [
        (one["text"], one["machine"], one["tokens"]) for one in rounded
    ]
    assert plain[0]["log_perplexity"] != rounded[0]["log_perplexity"] and plain[0]["likelihood_ratio"] is not None
    assert (lines[4]["quantize"], lines[9]["quantize"], lines[9]["dtype"]) == ("none", "int4", "bfloat16")


def test_no_books_is_one_sentence(tmp_path, capsys, bundled):
    assert quality.main(["--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'stories' / 'valid'} has no books; --data names the folder that holds stories/\n"


def test_the_footprint_is_the_ledgers(tiny_folder, capsys):
    assert memory.main(["--model", str(tiny_folder), "--slots", "3", "--context", "64", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["slot_bytes"] == 64 * 4 * 2 * 2 * (16 + 16), "tokens, bytes of a float32, layers, heads, keys and values"
    assert found["context_bytes"] == 4 * found["slot_bytes"] and found["weight_bytes"] > 0 and found["activation_bytes"] > 0
    assert found["loaded_bytes"] > 0 < found["process_bytes"]
    assert memory.main(["--model", str(tiny_folder / "no")]) == 2
