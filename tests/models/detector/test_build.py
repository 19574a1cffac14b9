"""Passages and stories cut alike, the page on made-up scores, and a bundled calibration that belongs to the bundled pair."""

import json
import random
from pathlib import Path

import pytest

from app.models.loading import create_engine
from app.models.revision import revision_of
from app.scoring import fitting, sample
from app.scoring.calibration import BESIDE, load
from app.scoring.sample import Row
from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from models.detector import build, excerpts, page

STORIES = Path(__file__).parents[4] / "shared/data/stories/valid"


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return Tokenizer(str(bundled))


def tokens(tokenizer, text):
    return len(tokenizer.encode(text, "text", special=False))


def test_a_text_is_cut_where_a_sentence_ends(tokenizer):
    text = 'The king went out. "Why?" said the fox.\nHe did not know, and so he went home again to his dinner.'
    first, second = "The king went out.", 'The king went out. "Why?" said the fox.'
    assert excerpts.cut(text, tokens(tokenizer, first), tokenizer) == first
    assert excerpts.cut(text, tokens(tokenizer, second) + 1, tokenizer) == second
    assert excerpts.cut(text, tokens(tokenizer, text), tokenizer) == text
    assert excerpts.cut(text, 2 * tokens(tokenizer, text), tokenizer) is None, "far too short"
    assert excerpts.cut("No end in sight for this one, and none to come", 9, tokenizer) is None


@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/data/stories is not there: the passages are those of its books")
def test_passages_lie_side_by_side_and_have_their_lengths(tokenizer):
    found = [piece for piece, _ in zip(excerpts.passages(STORIES, tokenizer), range(60), strict=False)]
    assert {piece.goal for piece in found} == set(excerpts.GOALS) and len({piece.text for piece in found}) == 60
    for piece in found:
        assert excerpts.SHORTEST * piece.goal <= tokens(tokenizer, piece.text) <= piece.goal + 1, piece.id
        assert piece.text.rstrip().endswith((".", "!", "?", '"', "'", "-")), piece.text[-20:]


def test_stories_are_told_once_and_without_their_request(bundled, tokenizer, tmp_path):
    human = excerpts.Piece(
        "book/1", "human", "book", "book/0", 100, "The fox and the crow went to the king. The king was glad of the crow."
    )
    engine, _ = create_engine(ModelSettings(path=str(bundled), slots=4, device="cpu", context=256))
    path = tmp_path / "stories.jsonl"
    made = excerpts.stories(engine, tokenizer, [human], path)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["kind"] for line in kept} == {"T=1", "T=0.7"}, "the settings of the server are for the middle length"
    assert all(tokens(tokenizer, line["text"]) >= 100 and "<|" not in line["text"] for line in kept)
    assert not any(excerpts.request(human) in line["text"] for line in kept)
    path.write_text(path.read_text() + '{"id": "torn')
    engine.submit = None  # nothing is left to tell
    assert excerpts.stories(engine, tokenizer, [human], path) == made


def test_a_request_is_the_same_each_time():
    piece = excerpts.Piece(
        "b/7", "human", "b", "b/0", 100, "The fox saw the crow. The crow had a cheese, and the fox wanted the cheese. So it was."
    )
    assert excerpts.request(piece) == excerpts.request(piece)
    assert "fox" in excerpts.request(piece) or "crow" in excerpts.request(piece)


def rows(domain, machine, count, mean, book):
    rng = random.Random(f"{domain}{machine}{book}")
    scores = [{"fast_detect": rng.gauss(mean, 1), "perplexity": 20 + rng.random()} for _ in range(count)]
    return [Row(machine, f"{book}/{n // 5}", domain, 100, one) for n, one in enumerate(scores)]


def test_the_page(monkeypatch):
    monkeypatch.setattr(fitting, "DRAWS", 10)
    monkeypatch.setattr(sample, "DRAWS", 10)
    told = [row for book in "abcde" for row in rows("human", False, 120, 0, book) + rows("T=1", True, 120, 3, book)]
    pairs = rows("xsum", False, 150, 0, "x") + rows("xsum", True, 150, 0, "x")
    served = build.ModelSettings()
    models = page.Calibration.model_fields["models"].annotation(
        performer="p", revision="1", observer=None, observer_revision=None, quantize="none", dtype=served.dtype
    )
    calibration = build.fit([row for row in told if page.book_of(row) in "abc"], models)
    text = page.render(calibration, ["a", "b", "c"], told, {"xsum_gpt/0": pairs, "xsum_gpt/25": pairs})
    own = next(line for line in text.splitlines() if line.startswith("| 64-128 tokens, T=1"))
    assert "| 240 / 240 |" in own, "the two books that were not fitted on"
    first = float(own.split("|")[3].split("[")[0])
    assert 0.95 < first < 1, "three standard deviations apart: 0.983"
    assert sum(line.startswith("| xsum_gpt |") for line in text.splitlines()) == 6
    assert "61% of the English essays" in text and "{" not in text


def test_nothing_is_said_of_texts_longer_than_any():
    assert page.ended(load_bucket(None)).max_tokens == page.LONGEST
    assert page.ended(load_bucket(128)).max_tokens == 128


def load_bucket(most):
    border = fitting.border(fitting.np.arange(20.0), 0.05, 1)
    return page.Bucket(min_tokens=64, max_tokens=most, n_human=20, n_machine=20, machine=(border,), human=(), chance=None)


def test_the_bundled_calibration_belongs_to_the_bundled_pair(bundled):
    made = load(bundled / BESIDE)
    base = bundled.with_name("storyteller-base")
    assert (made.models.revision, made.models.observer_revision) == (revision_of(str(bundled), None), revision_of(str(base), None))
    assert (made.models.performer, made.models.observer) == (bundled.name, base.name)
    assert made.collapse and "binoculars" in made.methods
    for scale in made.methods.values():
        assert [one.name for one in scale.buckets] == ["64-128", "128-256", "256-512"]
        assert all(border.measured <= border.target for one in scale.buckets for border in one.machine)
