"""The rules that turn books into requests: every answer is text of the book, every request names something in it."""

import gzip
import random
from pathlib import Path

import pytest

from models.train import corpus

CHAPTER = [
    "There was once a miller who had a daughter, and the miller was poor.",
    '"What shall we do?" said the miller. "We have nothing left but the old cat, and the cat eats more than it earns," cried Anna.',
    "The cat heard this. It went out into the wood, and in the wood it met a giant who was asleep under a tree.",
    "Puss was a clever animal. He took the giant's boots and his purse, and he ran home as fast as the boots would carry him.",
] * 6


@pytest.fixture
def books(tmp_path: Path) -> Path:
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"Second\n\nThird\nline\n"))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"First\n"))
    return tmp_path


def test_books_are_read_in_order_as_chapters_of_paragraphs(books: Path) -> None:
    assert corpus.read(books) == [["First"], ["Second"], ["Third", "line"]]


def test_passages_are_whole_paragraphs_in_order() -> None:
    found = list(corpus.passages([CHAPTER], random.Random(1)))
    assert len(found) > 3
    for passage in found:
        assert all(line in CHAPTER for line in passage.text.split("\n"))
        assert 20 <= len(passage.text.split()) <= 200
    assert [passage.following for passage in found[:-1]] == [passage.text for passage in found[1:]]


def test_every_answer_is_text_of_the_book_and_the_same_seed_gives_the_same_requests() -> None:
    made = corpus.dialogues([CHAPTER], 3)
    assert made == corpus.dialogues([CHAPTER], 3) != corpus.dialogues([CHAPTER], 4)
    greetings = {answer for _, answer in corpus.PERSONA}
    squeezed = " ".join(CHAPTER)
    for dialogue in made:
        assert [message["role"] for message in dialogue] == ["user", "assistant"] * (len(dialogue) // 2)
        for message in dialogue[1::2]:
            assert message["content"] in greetings or " ".join(message["content"].split()) in squeezed


def test_a_story_request_names_topics_of_the_passage() -> None:
    (passage, *_) = corpus.passages([CHAPTER], random.Random(1))
    assert "miller" in corpus.topics(passage.text)
    request = corpus.story(passage, random.Random(0))
    assert request is not None
    assert any(word in request[0]["content"] for word in corpus.topics(passage.text))


def test_a_character_request_is_answered_by_a_description() -> None:
    dialogue = corpus.character(corpus.Passage("\n".join(CHAPTER[2:4]), ""), random.Random(0))
    assert dialogue is not None
    assert "Puss" in dialogue[0]["content"]
    assert dialogue[1]["content"].startswith("Puss was a clever animal.")
