"""Every type of file that texts to score are read from, and what is wrong with those that cannot be."""

import gzip
import json
from pathlib import Path

import pytest

from app.errors import SetupError
from app.scoring.documents import Document, left_out, read_documents

TEXTS = ['one, "quoted"\nand on', "two"]


def write(folder: Path) -> list[Path]:
    (folder / "a.txt").write_text(TEXTS[0])
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    import pandas as pd

    pd.DataFrame({"text": TEXTS}).to_csv(folder / "c.csv", index=False)
    pd.DataFrame({"text": [*TEXTS, None]}).to_parquet(folder / "d.parquet")
    (folder / "deeper").mkdir()
    (folder / "deeper/e.txt.gz").write_bytes(gzip.compress(TEXTS[1].encode()))
    (folder / "ignored.png").write_bytes(b"x")
    return [folder / name for name in ("a.txt", "b.jsonl", "c.csv", "d.parquet", "deeper/e.txt.gz")]


def test_files_and_folders_give_the_same_texts(tmp_path: Path) -> None:
    files = write(tmp_path)
    documents = list(read_documents(files))
    assert [document.content for document in documents] == [TEXTS[0], *TEXTS, *TEXTS, *TEXTS, None, TEXTS[1]]
    assert documents == list(read_documents([tmp_path]))
    assert [document.source for document in documents[:3]] == [f"{tmp_path}/a.txt", f"{tmp_path}/b.jsonl:1", f"{tmp_path}/b.jsonl:2"]


def test_a_row_of_a_table_is_never_a_fragment(tmp_path: Path) -> None:
    tables = {
        "a": "text\nHello, this is a text; nobody quoted it.\n",
        "b": 'id;text;;\n1;"The bus was late, so I walked.";;\n2;;;\n',
        "c": "id\ttext\n1\tone, two; three\n",
        "d": "text,label\nHello, this is a text,human\n",
    }
    for name, content in tables.items():
        (tmp_path / f"{name}.csv").write_text(content)
    documents = list(read_documents([tmp_path]))
    texts = ["Hello, this is a text; nobody quoted it.", "The bus was late, so I walked.", "", "one, two; three", None]
    assert [document.content for document in documents] == texts
    assert documents[-1].problem == "it has 3 cells, the first line has 2; put a text that has a comma in quotation marks"


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("text\none\n\ntwo\n", {2: "one", 4: "two"}),
        ("id,Text \n1,one\n2\n", {2: "one", 3: None}),
        ("Text,text\nno,one\n", {2: "one"}),
        ("body\none\n", {2: "one"}),
        ("\nEssays of May\none, two\n", {3: "one, two"}),
        (",essay\n0,one\n", {2: "one"}),
        ("One text.", {}),
        ("", {}),
    ],
)
def test_the_column_of_a_csv_file_is_found_once(tmp_path: Path, content: str, texts: dict[int, str | None]) -> None:
    (tmp_path / "a.csv").write_text(content)
    expected = [Document(f"{tmp_path}/a.csv:{line}", text) for line, text in texts.items()]
    assert list(read_documents([tmp_path / "a.csv"])) == expected


def test_a_first_line_that_is_no_known_name_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "a.csv").write_text("A first text.\none\n")
    (tmp_path / "b.csv").write_text("TEXT\none\n")
    assert [document.content for document in read_documents([tmp_path], note=notes.append)] == ["one", "one"]
    advice = "if it is a text, put a line with the word text above it"
    assert notes == [f"{tmp_path}/a.csv: the first line, “A first text.”, was read as the name of the column; {advice}"]


def test_a_line_without_the_field_is_a_document_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"other": "x"}\n{"text": 7}\n{"text": ""}\n')
    assert [document.content for document in read_documents([tmp_path / "a.jsonl"])] == [None, None, ""]
    (named,) = list(read_documents([tmp_path / "a.jsonl"], "other"))[:1]
    assert named == Document(f"{tmp_path}/a.jsonl:1", "x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.doc", b"x", "unknown type of file"),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.txt", b"\xff", "how it is encoded cannot be told"),
        ("a.csv", b"id,essay\n1,x\n", r"a.csv: no column 'text'; name the column with --text \(it has id, essay\)"),
        ("a.csv", b"text,text\none,two\n", "a.csv, 2 columns are named text; give all but one of them other names"),
        ("a.csv", b'text\none\n"two\nthree\n', "a.csv, line 3: a quotation mark opens a cell and none closes it"),
        ("a.parquet", b"no", "cannot be read"),
        ("gone.txt", None, "gone.txt does not exist"),
        ("gone", None, "gone does not exist"),
        ("empty", None, "the folder has no"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if name == "empty":
        (tmp_path / name).mkdir()
    with pytest.raises(SetupError, match=message):
        list(read_documents([tmp_path / name]))


def test_a_parquet_file_without_the_column_names_those_that_it_has(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"body": ["a"], "id": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(SetupError, match=r"no column 'text'.*it has body, id"):
        list(read_documents([tmp_path / "a.parquet"]))


def test_a_file_of_a_folder_that_cannot_be_read_is_a_document_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{\n{"text": "y"}\n')
    (tmp_path / "c.jsonl").write_text("[" * 100_000)
    (tmp_path / "d.csv").write_bytes(b"text\rone\rtwo\r")
    (tmp_path / "e.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "f.txt").mkdir()
    (tmp_path / "scores.csv").write_text("source\n")
    (tmp_path / "g.csv").hardlink_to(tmp_path / "scores.csv")
    documents = list(read_documents([tmp_path], results=tmp_path / "scores.csv"))
    assert [document.content for document in documents] == [None, "x", None, None, "one", "two", None]
    said = [document.problem for document in documents if document.content is None]
    for part, problem in zip(
        ("encoded cannot be told", "line 2: not JSON", "nested too deeply", "e.txt does not exist"), said, strict=True
    ):
        assert part in problem


def test_files_that_are_left_out_are_counted_by_type(tmp_path: Path) -> None:
    write(tmp_path)
    assert left_out([tmp_path]) == "1 file left out: .png 1"
    for name in ("a.pdf", "deeper/B.PDF", "deeper/plain", "c.docx", "d.odt", "e.rtf", "f.xls", "README.MD", "scores.xlsx"):
        (tmp_path / name).write_text("x")
    assert left_out([tmp_path, tmp_path / "a.txt"], tmp_path / "scores.xlsx") == (
        "8 files left out: .pdf 2, .docx 1, .odt 1, without a suffix 1, .rtf 1, others 2"
    )
    assert f"{tmp_path}/README.MD" in {document.source for document in read_documents([tmp_path])}
    assert left_out([tmp_path / "a.txt"]) == ""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.csv", "a.jsonl", "a.txt.gz"])
def test_files_are_read_in_the_encodings_that_programs_write(tmp_path: Path, name: str, encoding: str) -> None:
    text = "The café was crowded, “as ever”."
    written = {".csv": f'text\n"{text}"\n', ".jsonl": json.dumps({"text": text}, ensure_ascii=False)}.get(Path(name).suffix, text)
    data = written.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [document.content for document in read_documents([tmp_path / name])] == [text]
