"""Passages and stories are cut alike, the page renders made-up scores, and the bundled calibration applies to the bundled pair."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.facts import Facts
from app.models.loading import create_engine
from app.models.revision import revision_of
from app.scoring import fitting, sample
from app.scoring.calibration import CALIBRATION_FILE, load
from app.scoring.combining import with_combined
from app.scoring.detector import detector_of
from app.scoring.features import STATISTICS
from app.scoring.sample import ScoreRow
from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from models.detector import build, excerpts, page

STORIES = Path(__file__).parents[4] / "shared/data/stories/valid"


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return Tokenizer(str(bundled))


def count_tokens(tokenizer, text):
    return len(tokenizer.encode(text, "text", add_special_tokens=False))


def test_a_text_is_cut_where_a_sentence_ends(tokenizer):
    text = 'The king went out. "Why?" said the fox.\nHe did not know, and so he went home again to his dinner.'
    first, second = "The king went out.", 'The king went out. "Why?" said the fox.'
    assert excerpts.cut_to_sentences(text, count_tokens(tokenizer, first), tokenizer) == first
    assert excerpts.cut_to_sentences(text, count_tokens(tokenizer, second) + 1, tokenizer) == second
    assert excerpts.cut_to_sentences(text, count_tokens(tokenizer, text), tokenizer) == text
    assert excerpts.cut_to_sentences(text, 2 * count_tokens(tokenizer, text), tokenizer) is None, "far too short"
    assert excerpts.cut_to_sentences("No end in sight for this one, and none to come", 9, tokenizer) is None


@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/data/stories is not there: the passages are those of its books")
def test_passages_differ_and_have_the_goal_lengths(tokenizer):
    passages = [passage for passage, _ in zip(excerpts.passages(STORIES, tokenizer), range(60), strict=False)]
    assert {passage.goal for passage in passages} == set(excerpts.GOAL_TOKENS)
    assert len({passage.text for passage in passages}) == 60
    for passage in passages:
        assert excerpts.MIN_SHARE_OF_GOAL * passage.goal <= count_tokens(tokenizer, passage.text) <= passage.goal + 1, passage.id
        assert passage.text.rstrip().endswith((".", "!", "?", '"', "'", "-")), passage.text[-20:]


def test_stories_are_generated_once_and_recorded_without_their_prompt(bundled, tokenizer, tmp_path):
    human = excerpts.Excerpt(
        "book/1", "human", "book", "book/0", 100, "The fox and the crow went to the king. The king was glad of the crow."
    )
    engine, _ = create_engine(ModelSettings(path=str(bundled), slots=4, device="cpu", context=256))
    path = tmp_path / "stories.jsonl"
    stories = excerpts.load_or_generate_stories(engine, tokenizer, [human], path)
    recorded = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["kind"] for line in recorded} == {"T=1", "T=0.7"}, "sampling with the default top_p is for the middle length"
    assert all(count_tokens(tokenizer, line["text"]) >= 100 and "<|" not in line["text"] for line in recorded)
    assert not any(excerpts.story_prompt(human) in line["text"] for line in recorded)
    path.write_text(path.read_text() + '{"id": "torn')
    engine.submit = None  # nothing is left to generate
    assert excerpts.load_or_generate_stories(engine, tokenizer, [human], path) == stories


def test_the_prompt_of_a_passage_is_reproducible():
    passage = excerpts.Excerpt(
        "b/7", "human", "b", "b/0", 100, "The fox saw the crow. The crow had a cheese, and the fox wanted the cheese. So it was."
    )
    assert excerpts.story_prompt(passage) == excerpts.story_prompt(passage)
    assert "fox" in excerpts.story_prompt(passage) or "crow" in excerpts.story_prompt(passage)


def rows(domain, machine, count, mean, book):
    rng = random.Random(f"{domain}{machine}{book}")
    scores = [{"fast_detect": rng.gauss(mean, 1), "perplexity": 20 + rng.random()} for _ in range(count)]
    generator = domain if machine else ""
    return [
        ScoreRow(machine, f"{book}/{n // 5}", domain, 100, score, dict.fromkeys(STATISTICS, score["fast_detect"]), generator)
        for n, score in enumerate(scores)
    ]


def test_the_page(monkeypatch):
    monkeypatch.setattr(fitting, "BOOTSTRAP_DRAWS", 10)
    monkeypatch.setattr(sample, "BOOTSTRAP_DRAWS", 10)
    stories = [row for book in "abcde" for row in rows("human", False, 120, 0, book) + rows("T=1", True, 60, 3, book)]
    stories += [row for book in "abcde" for row in rows("T=0.7", True, 60, 2, book)]
    pairs = rows("xsum", False, 150, 0, "x") + rows("xsum", True, 150, 0, "x")
    models = page.Calibration.model_fields["models"].annotation(
        performer="p", revision="1", observer=None, observer_revision=None, quantize="none", dtype=build.ModelSettings().dtype
    )
    calibration, fitted = build.fit_calibration([row for row in stories if page.book_of(row) in "abc"], models)
    assert calibration.combined is not None and list(calibration.methods) == ["combined", "fast_detect", "perplexity"]
    others = with_combined([row for row in stories if page.book_of(row) in "de"], calibration.combined)
    sets = {name: with_combined(pairs, calibration.combined) for name in ("xsum_gpt/0", "xsum_gpt/25")}
    text = page.render(calibration, fitted, others, sets)
    own, left_out = (line.split("|") for line in text.splitlines() if line.startswith("| 64-128 tokens, T=1"))
    assert own[2] == left_out[2] == " 240 / 120 ", "texts of the two held-out books"
    for cells in (own, left_out):  # combined, then fast_detect
        assert all(0.95 < float(cell.split("[")[0]) < 1 for cell in cells[3:5]), "three standard deviations apart: 0.983"
    found = [float(cell.split("%")[0]) for cell in left_out[6:10]]  # by combined and by the best other, at 5% and at 1%
    assert 80 < found[0] < 99 and 60 < found[2] < found[0] and found[1::2] == pytest.approx(found[::2], abs=3)
    assert sum(line.startswith("| xsum_gpt |") for line in text.splitlines()) == 6
    assert "61% of the English essays" in text and "{" not in text


def test_the_last_bucket_ends_at_the_longest_measured_text():
    assert page.with_upper_limit(make_bucket(None)).max_tokens == page.MAX_TOKENS
    assert page.with_upper_limit(make_bucket(128)).max_tokens == 128


def make_bucket(max_tokens):
    threshold = fitting.fit_threshold(fitting.np.arange(20.0), 0.05, 1)
    return page.Bucket(min_tokens=64, max_tokens=max_tokens, n_human=20, n_machine=20, machine=(threshold,), human=(), chance=None)


def test_the_bundled_calibration_applies_to_the_bundled_pair(bundled):
    calibration = load(bundled / CALIBRATION_FILE)
    base = bundled.with_name("storyteller-base")
    assert (calibration.models.revision, calibration.models.observer_revision) == (
        revision_of(str(bundled), None),
        revision_of(str(base), None),
    )
    assert (calibration.models.performer, calibration.models.observer) == (bundled.name, base.name)
    assert calibration.collapse and "binoculars" in calibration.methods
    assert calibration.combined is not None and [question.name for question in calibration.combined.questions] == [
        "likely",
        "drawn",
        "pair",
    ]
    for fitted in calibration.methods.values():
        assert [bucket.name for bucket in fitted.buckets] == ["64-128", "128-256", "256-512"]
        assert all(threshold.measured <= threshold.target for bucket in fitted.buckets for threshold in bucket.machine)


def test_combined_is_the_default_of_the_bundled_pair_and_needs_both_models(bundled):
    settings = build.settings_of(1)
    assert settings.path == str(bundled), "whatever the default model is"
    models = load(bundled / CALIBRATION_FILE).models
    pair = Facts("s", 64, 1, "none", "float32", "cpu", models.observer, True, "", models.revision, models.observer_revision)
    detector = detector_of(settings)
    assert detector.methods(pair)[0] == "combined" and detector.options(pair).choice.calibration is not None
    other = replace(pair, observer_revision="other")
    assert "combined" not in detector.methods(other)
    assert "observer revision" in (detector.choose(["combined"], other).reason or "")
