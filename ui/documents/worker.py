"""Takes the text out of one .pdf or .docx file: `python -m ui.documents.worker pdf < file`. Prints {"text", "note"} or {"problem"} as JSON.

Such a file can be made to take all memory or run for ever, so it is read in a process of its own, with bounds, which may write no file.
What starts it (`ui.documents.reading`) also kills it.
"""

import json
import re
import resource
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO

MAX_MEMORY_BYTES = 1 << 30
MAX_CPU_S = 20
SOFT_S = 10.0  # after which no further page is begun
MAX_PAGES = 1000
MAX_CHARACTERS = 500_000
MAX_UNPACKED_BYTES = 100_000_000
MAX_PARTS = 5000  # files in a .docx
PROTECTED = "This PDF is protected by a password. Save it without one and upload it again."
LINE_END_HYPHEN = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


class Unreadable(Exception):
    """The message is a sentence for the visitor."""


def pdf_text(data: bytes) -> tuple[str, str]:
    """The text, and a note on what was left out."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    reader, began_s = PdfReader(BytesIO(data)), time.monotonic()
    try:
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable(PROTECTED)
    except DependencyError:  # a cipher that is not read
        raise Unreadable(PROTECTED) from None
    pages: list[str] = []
    length, count = 0, len(reader.pages)
    for page in reader.pages:
        if len(pages) >= MAX_PAGES or length > MAX_CHARACTERS or time.monotonic() - began_s > SOFT_S:
            break
        pages.append(page.extract_text())
        length += len(pages[-1])
    text = LINE_END_HYPHEN.sub("", "\n".join(pages))
    if not text.strip():
        raise Unreadable("This PDF has no text, so it is probably a scan. Run text recognition (OCR) on it, or paste the text.")
    return text, "" if len(pages) == count else f"Only the first {len(pages):,} of {count:,} pages were read."


def docx_text(data: bytes) -> tuple[str, str]:
    check_unpacked_size(data)
    text = "\n".join(docx_lines(data))
    if not text.strip():
        raise Unreadable("This document has no text in it. If its pages are pictures, run text recognition (OCR) on them first.")
    return text, ""


def check_unpacked_size(data: bytes) -> None:
    if not zipfile.is_zipfile(BytesIO(data)):
        raise Unreadable("This is no .docx file. Old .doc files and protected ones have to be saved as .docx without a password first.")
    parts = zipfile.ZipFile(BytesIO(data)).infolist()
    if len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > MAX_UNPACKED_BYTES:
        raise Unreadable(f"This document unpacks to more than {MAX_UNPACKED_BYTES // 1_000_000} MB. Paste its text instead.")


def docx_lines(data: bytes) -> Iterator[str]:
    """Paragraphs and the cells of tables in their order; no headers, footers, notes or comments."""
    from docx import Document
    from docx.text.paragraph import Paragraph

    for block in Document(BytesIO(data)).iter_inner_content():
        if isinstance(block, Paragraph):
            yield block.text
        else:
            yield from (cell.text for row in block.rows for cell in row.cells)


READERS: dict[str, Callable[[bytes], tuple[str, str]]] = {"pdf": pdf_text, "docx": docx_text}


def bound_this_process() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main(kind: str) -> None:
    """An error that is not expected ends the process with its code; the parent says that the file is damaged."""
    bound_this_process()
    try:
        text, note = READERS[kind](sys.stdin.buffer.read())
        answer = {"text": text, "note": note}
    except Unreadable as error:
        answer = {"problem": str(error)}
    except MemoryError:
        answer = {"problem": "This file needs more memory to read than one file may have. Paste its text instead."}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
