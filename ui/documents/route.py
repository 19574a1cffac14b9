"""`POST documents`: the raw body of one file, its name in the header X-File-Name, to the texts in it. Keeps nothing.

A file that cannot be read is an answer with a `problem`, as others of its list may be read.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import PurePath
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ui.calls import read_body
from ui.documents.reading import read_document
from ui.documents.worker import Unreadable

NAME_HEADER = "X-File-Name"  # percent-encoded: a header has no other letters, and a query would be in the logs of proxies
MAX_NAME = 200
MAX_READERS = 2  # files that are parsed at once


def documents_route(max_bytes: int) -> Callable[[Request], Awaitable[Response]]:
    readers = asyncio.Semaphore(MAX_READERS)

    async def documents(request: Request) -> Response:
        data = await read_body(request, max_bytes)
        if data is None:
            return JSONResponse({"detail": f"A file may have {max_bytes:,} bytes. Split it, or paste a part of its text."}, 413)
        try:
            async with readers:
                reading = await read_document(file_name(request), data)
        except Unreadable as error:
            return JSONResponse({"problem": str(error), "texts": []})
        return JSONResponse({"note": reading.note, "texts": [asdict(part) for part in reading.parts]})

    return documents


def file_name(request: Request) -> str:
    """Without folders and control characters."""
    name = PurePath(unquote(request.headers.get(NAME_HEADER, "")).replace("\\", "/")).name
    return "".join(letter for letter in name if letter.isprintable())[-MAX_NAME:] or "file"
