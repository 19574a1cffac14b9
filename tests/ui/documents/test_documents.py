"""What a file's texts are, and what is said of files that cannot be read: damaged, locked, empty, too large, made to do harm."""

import asyncio
import io
import json
import sys
import zipfile
from pathlib import Path

import docx
import pytest
from pypdf import PdfReader, PdfWriter

from ui.documents import reading
from ui.documents.plain import MAX_ROWS, Reading
from ui.documents.reading import read_document
from ui.documents.worker import MAX_CHARACTERS, MAX_UNPACKED_BYTES, Unreadable, docx_text, pdf_text

PDF_PAGE = b"BT /F1 12 Tf 40 800 Td 14 TL (The old king sat by the fire and went to sea, where the exam-) Tj T* (ple was.) Tj ET"


def read(name: str, data: bytes) -> Reading:
    return asyncio.run(read_document(name, data))


def problem(name: str, data: bytes) -> str:
    with pytest.raises(Unreadable) as raised:
        read(name, data)
    return str(raised.value)


def pdf(content: bytes = PDF_PAGE, kids: int = 1) -> bytes:
    """A PDF of one page, which its list of pages may name many times."""
    font = b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b"3 0 R " * kids, kids),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] %s /Contents 4 0 R >>" % font,
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return body + b"xref\n0 5\n0000000000 65535 f \n" + table + b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(body)


def locked(data: bytes) -> bytes:
    writer, out = PdfWriter(clone_from=PdfReader(io.BytesIO(data))), io.BytesIO()
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(out)
    return out.getvalue()


def word(*paragraphs: str) -> bytes:
    document, out = docx.Document(), io.BytesIO()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    if paragraphs:
        document.add_table(1, 1).rows[0].cells[0].text = "a cell"
    document.save(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "text", "note"),
    [
        ("naïve 猫".encode(), "naïve 猫", ""),
        ("naïve".encode("utf-8-sig"), "naïve", ""),
        ("naïve".encode("utf-16"), "naïve", ""),
        ("naïve".encode("utf-32"), "naïve", ""),
        (b"one\n\x1a", "one\n\x1a", ""),
        ("naïve – so".encode("cp1252"), "naïve – so", "Windows-1252"),
    ],
)
def test_text_in_the_encodings_that_people_have(data: bytes, text: str, note: str):
    found = read("a.md", data)
    assert found.parts[0].text == text and note in found.note and bool(note) == bool(found.note)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n", "empty"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", "no text file"),
        ("a.txt", b"so\x02", "no text file"),
        ("a.txt", b"\x81\x8d\xff", "Save it as UTF-8"),
        ("a.txt", "Старый король ушёл в море.".encode("cp1251"), "Save it as UTF-8"),
        ("a.csv", "text\n老国王走向大海。\n".encode("gbk"), "Save it as UTF-8"),
        ("a.doc", b"\xd0\xcf", "Save it as .docx"),
        ("a.png", b"x", "Save it as one of these"),
        ("none", b"x", ".txt, .md, .pdf, .docx, .csv, .jsonl"),
        ("a.csv", b"id,words\n1,x\n", "No column is named text (its columns: id, words)"),
        ("a.csv", b"text\n", "no row with a text"),
        ("a.csv", b"Text,Text\none,two\n", "2 columns are named Text; give all but one of them other names."),
        ("a.csv", b'text\n"never closed', "Line 2: a quotation mark opens a cell and none closes it."),
        ("a.jsonl", b"\n\n", "empty"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(name: str, data: bytes, words: str):
    if words == "There is no":
        assert read(name, data).parts[0].text == "never closed"
    else:
        assert words in problem(name, data)


def test_each_row_of_a_table_is_a_text_or_has_its_problem():
    found = read("a.csv", b'\xef\xbb\xbfid,Text\n1,"one, two"\n\n2,\n3,"a\nb"\n')
    assert [(part.name, part.text) for part in found.parts] == [
        ("a.csv, line 2", "one, two"),
        ("a.csv, line 4", ""),
        ("a.csv, line 5", "a\nb"),
    ]
    assert found.parts[1].problem == "There is no text here: its text is empty."
    lines = read("b.jsonl", b'{"text": "x"}\n\n[1]\n{"essay": "y"}\n{broken\n"plain"\n')
    assert [part.text for part in lines.parts] == ["x", "", "y", "", "plain"]
    assert "no JSON object with a field text" in lines.parts[1].problem and lines.parts[3].name == "b.jsonl, line 5"


LETTER = "Hello, this is a text; nobody quoted it, so it stays whole."


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (f"text\n{LETTER}\nnone\n", [LETTER, "none"]),
        (f"text,,\n{LETTER},,\n", [LETTER]),
        (
            'id;text\n1;"The bus was late, so I walked; it rained."\n2;Late, again.\n',
            ["The bus was late, so I walked; it rained.", "Late, again."],
        ),
        (f"id\ttext\n1\t{LETTER}\n", [LETTER]),
        ("id;text, or so;text\n1;a;b, c\n", ["b, c"]),
        (f"text,label\n{LETTER},human\n", [""]),
        ("text,label\nshort,human,,\n", ["short"]),
    ],
)
def test_a_row_of_a_table_is_never_a_fragment(data: str, texts: list[str]):
    found = read("a.csv", data.encode())
    assert [part.text for part in found.parts] == texts and found.note == ""
    if not texts[0]:
        problem = "This row cannot be read: it has 4 cells, the first line has 2; put a text that has a comma in quotation marks."
        assert found.parts[0].problem == problem


def test_a_first_line_that_is_no_known_name_is_said():
    said = "The first line, “{}”, was read as the name of the column; if it is a text, put a line with the word text above it."
    assert read("a.csv", b"Essays of May\none, two\n").note == said.format("Essays of May")
    assert read("a.csv", b",essays\n0,one\n").note == said.format("essays")
    assert problem("a.csv", b"One text.") == f"This file has no row with a text. {said.format('One text.')}"


def test_a_long_table_and_a_long_text_are_cut_and_say_so():
    many = read("a.csv", b"text\n" + b"word\n" * (MAX_ROWS + 5))
    assert (
        len(many.parts) == MAX_ROWS
        and f"Only the first {MAX_ROWS} of {MAX_ROWS + 5} rows were read." in many.note
        and "Jobs tab" in many.note
    )
    long = read("a.txt", b"x" * (MAX_CHARACTERS + 5))
    assert len(long.parts[0].text) == MAX_CHARACTERS and "Only the first" in long.note
    assert "more than" in read("a.csv", b"text\n" + b"x" * (MAX_CHARACTERS + 1)).parts[0].problem


def test_a_pdf_and_a_word_document_are_read_in_a_process_of_their_own():
    assert read("a.PDF", pdf()).parts[0].text.split("\n")[0].endswith("where the example was.")
    found = read("b.docx", word("One.", "Two."))
    assert found.parts[0].text == "One.\nTwo.\na cell"


def test_pages_beyond_the_limit_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.documents.worker.MAX_PAGES", 3)
    text, note = pdf_text(pdf(kids=10_000))
    assert text.count("old king") == 3 and note == "Only the first 3 of 10,000 pages were read."


@pytest.mark.parametrize(
    ("extract", "data", "words"),
    [
        (pdf_text, pdf(b""), "probably a scan"),
        (pdf_text, locked(pdf()), "protected by a password"),
        (docx_text, word(), "no text in it"),
        (docx_text, b"\xd0\xcf\x11\xe0", "no .docx file"),
    ],
)
def test_locked_and_empty_documents(extract, data: bytes, words: str):
    with pytest.raises(Unreadable, match=words):
        extract(data)


def test_a_zip_bomb_is_not_unpacked():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as part:
        for _ in range(MAX_UNPACKED_BYTES // 1_000_000 + 1):
            part.write(bytes(1_000_000))
    assert len(out.getvalue()) < 1_000_000
    with pytest.raises(Unreadable, match="unpacks to more than 100 MB"):
        docx_text(out.getvalue())


STUBBORN = "import sys, time; sys.stdin.buffer.read(); {}"


def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """The worker runs this code, after it has set its bounds."""
    folder = tmp_path / "ui/documents"
    folder.mkdir(parents=True)
    source = (reading.ROOT / "ui/documents/worker.py").read_text()
    (folder / "worker.py").write_text(source.replace("READERS[kind](sys.stdin.buffer.read())", f"(exec({code!r}), ('', ''))[1]"))
    monkeypatch.setattr(reading, "ROOT", tmp_path)


def test_a_file_that_takes_for_ever_is_given_up_and_its_process_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    worker(monkeypatch, tmp_path, f"import os; open({str(tmp_path / 'fifo')!r}); time.sleep(60)")
    (tmp_path / "fifo").write_text("x")
    with pytest.raises(Unreadable, match="takes too long"):
        asyncio.run(reading._read_apart("pdf", b"x", timeout_s=0.5))


@pytest.mark.parametrize(
    ("code", "words"),
    [("bytearray(2 << 30)", "needs more memory"), ("1 / 0", "damaged"), ("import os; os.kill(os.getpid(), 9)", "takes too long")],
)
def test_a_file_that_breaks_its_reader_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, words: str):
    worker(monkeypatch, tmp_path, code)
    assert words in problem("a.pdf", b"x")


def test_the_reader_can_write_no_file_and_sees_no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LITMUS_UI__KEY", "secret")
    path = str(tmp_path / "written")
    code = (
        "import os, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"try:\n os.write(os.open({path!r}, os.O_WRONLY | os.O_CREAT), b'x')\n"
        "except OSError as error:\n raise Unreadable(f'{error.errno} {sorted(os.environ)}')"
    )
    worker(monkeypatch, tmp_path, code)
    found = problem("a.pdf", b"x")
    assert found.startswith("27 ") and "LITMUS" not in found


def test_the_worker_answers_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from ui.documents import worker as module

    monkeypatch.setattr(module, "bound_this_process", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pdf(b""))))
    module.main("pdf")
    assert "scan" in json.loads(capsys.readouterr().out)["problem"]
