"""Texts from files of every type, and how they are prepared for a calibration."""

import csv
import gzip
import json

import pytest

from app.errors import SetupError
from app.scoring.sources import FieldNames, LabelledText, drop_first_words, prepare_texts, read


def test_every_type_of_file(tmp_path):
    pair = {"human": "h", "machine": "m", "domain": "news", "group": 7}
    (tmp_path / "pair.jsonl.gz").write_bytes(gzip.compress((json.dumps(pair) + "\n\n").encode()))
    with (tmp_path / "sheet.csv").open("w") as file:
        csv.writer(file).writerows([["body", "topic"], ["one,\ntwo", "x"], ["three", "y"]])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.txt").write_text("bee\n")
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfay"))
    (folder / "c.md").write_text("no")
    pairs = [text for machine in (False, True) for text in read([tmp_path / "pair.jsonl.gz"], machine, FieldNames())]
    assert pairs == [LabelledText("h", False, "7", "news"), LabelledText("m", True, "7", "news")]
    assert [*read([tmp_path / "sheet.csv"], True, FieldNames("body", "topic", "topic"))] == [
        LabelledText("one,\ntwo", True, "x", "x"),
        LabelledText("three", True, "y", "y"),
    ]
    assert [*read([folder], False, FieldNames())] == [LabelledText("ay", False, "a.txt.gz"), LabelledText("bee\n", False, "b.txt")]


def test_lines_without_a_group_are_their_own_group(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert [text.group for text in read([tmp_path / "t.jsonl"], False, FieldNames())] == ["t.jsonl:1", "t.jsonl:3"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.jsonl", b"[1]", "line 1: not an object"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1: no field 'text' with a text"),
        ("a.csv", b"body\nx\n", "a.csv:2: no field 'text'"),
        ("a.csv", b"text,domain\none, two,x\n", "a.csv:2: it has 3 cells, the first line has 2"),
        ("a.csv", b"text,domain,text\na,b,c\n", "a.csv, 2 columns are named text; give all but one"),
        ("a.csv", b'text\na\n"b\nc\n', "a.csv, line 3: a quotation mark opens a cell and none closes it"),
        ("a.txt", b"\xff\xff", "cannot be read: how it is encoded cannot be told"),
        ("a.txt", b"\0a", "cannot be read: it holds no plain text"),
        ("a.txt.gz", b"plain", "cannot be read"),
        ("a.pdf", b"", "unknown type of file; give .jsonl, .csv or .txt"),
        ("folder", None, "has no .txt"),
        ("none.txt", None, "does not exist"),
        ("none", None, "does not exist"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, data, message):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    elif name == "folder":
        path.mkdir()
    with pytest.raises(SetupError) as caught:
        [*read([path], False, FieldNames())]
    assert message in str(caught.value) and name in str(caught.value)


def test_prepare_texts():
    texts = [
        LabelledText("one\u200b two\n\nthree", False, "a"),
        LabelledText("one two three", False, "b"),
        LabelledText("\n ", True, "c"),
        LabelledText("both", False, "d"),
        LabelledText("both ", True, "e"),
        LabelledText("four five", True, "f"),
    ]
    assert [(text.content, text.group) for text in prepare_texts(texts, collapse=True)] == [("one two three", "a"), ("four five", "f")]
    assert [text.content for text in prepare_texts(texts, collapse=False)] == [
        "one two\n\nthree",
        "one two three",
        "both",
        "both ",
        "four five",
    ]
    assert [text.content for text in prepare_texts(texts, collapse=True, cut_words=2)] == ["three"]


@pytest.mark.parametrize(("count", "rest"), [(0, " a b\nc  d "), (1, "b\nc  d "), (2, "c  d "), (4, ""), (9, "")])
def test_drop_first_words(count, rest):
    assert drop_first_words(" a b\nc  d ", count) == rest
