"""From the bytes of an uploaded file to its texts. Nothing is written to disk; what needs a parser is read in a process with bounds.

Knows no HTTP. What cannot be read is an `Unreadable`, whose message is a sentence for the visitor.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path, PurePath

from ui.documents.plain import Part, Reading, csv_parts, decode, jsonl_parts
from ui.documents.worker import MAX_CHARACTERS, READERS, Unreadable

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 25.0
TOO_LONG = "This file takes too long to read. Paste its text, or upload a smaller part of it."
ENDED_FOR_TIME = (-signal.SIGXCPU, -signal.SIGKILL)  # return codes
KINDS = ".txt, .md, .pdf, .docx, .csv, .jsonl"
OLD_KINDS = {".doc": "Save it as .docx", ".odt": "Save it as .docx", ".rtf": "Save it as .docx", ".pages": "Export it as .docx"}


async def read_document(name: str, data: bytes) -> Reading:
    """The texts of a file: one, or one a row of a .csv or .jsonl. Raises `Unreadable`."""
    kind = PurePath(name).suffix.lower()
    if not data.strip():
        raise Unreadable("This file is empty. Choose another, or paste the text.")
    if kind in {".csv", ".jsonl"}:
        content, note = await asyncio.to_thread(decode, data)
        return (csv_parts if kind == ".csv" else jsonl_parts)(name, content, note)
    if kind in {".txt", ".md"}:
        text, note = await asyncio.to_thread(decode, data)
    elif kind.removeprefix(".") in READERS:
        text, note = await _read_apart(kind.removeprefix("."), data)
    else:
        advice = OLD_KINDS.get(kind, "Save it as one of these, or paste the text")
        raise Unreadable(f"Files of this type are not read; {KINDS} are. {advice}.")
    return _whole(name, text, note)


def _whole(name: str, text: str, note: str) -> Reading:
    if len(text) > MAX_CHARACTERS:
        cut = f"Only the first {MAX_CHARACTERS:,} characters were read."
        return Reading((Part(name, text[:MAX_CHARACTERS]),), f"{note} {cut}".strip())
    return Reading((Part(name, text),), note)


async def _read_apart(kind: str, data: bytes, timeout_s: float = TIMEOUT_S) -> tuple[str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ui.documents.worker",
        kind,
        cwd=ROOT,
        env={},  # neither keys nor proxies
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate(data)
    except TimeoutError:
        raise Unreadable(TOO_LONG) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode in ENDED_FOR_TIME:
        raise Unreadable(TOO_LONG)
    return _answer(kind, output)


def _answer(kind: str, output: bytes) -> tuple[str, str]:
    try:
        answer = json.loads(output)
    except ValueError:  # it crashed
        raise Unreadable(f"This file is damaged, or it is no .{kind} file. Open it, save it again, and upload that.") from None
    if "problem" in answer:
        raise Unreadable(answer["problem"])
    return answer["text"], answer["note"]
