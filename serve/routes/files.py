"""`/v1/files`: uploaded in a stream, kept under an id, shown to the key that uploaded them and to nobody else."""

import logging
import os
import re
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.requests import ClientDisconnect
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable
from starlette.types import Receive, Scope, Send

from app.errors import BodyTooLarge, Forbidden, InvalidRequest, LitmusError, NotFound, NotReady, RangeBeyondEnd
from app.ledger.folder import Draft, Folder
from app.schemas.files import MAX_FILE_S, MIN_FILE_S, FileDeleted, FileList, FileObject
from serve.body import MAX_READ_FACTOR
from serve.desk import Desk
from serve.observe.record import CLIENT_LEFT
from serve.routes.state import ERROR_RESPONSES, Responses
from serve.wire.errors import error_response
from serve.wire.upload import Form

log = logging.getLogger(__name__)

FIELDS = frozenset({"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"})
MADE_FOR = "x-litmus-made-for"
MADE = {
    "batch_output": re.compile(r"batch_[0-9a-f]{32}/(output|error)"),
    "fine-tune-results": re.compile(r"ftjob-[0-9a-f]{32}/results"),
}
UPLOADED = ("batch", "fine-tune")  # purposes
PIECE_BYTES = 2**20  # written at once
DAY_S = 86_400
GONE = "file_content_gone"  # code
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "one JSON object a line"},
                        "purpose": {"type": "string", "enum": [*UPLOADED]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": MIN_FILE_S, "maximum": MAX_FILE_S},
                    },
                }
            }
        },
    }
}
ERRORS: Responses = {
    **{status: ERROR_RESPONSES[status] for status in (400, 413, 415, 503)},
    404: {**ERROR_RESPONSES[404], "description": "no such file of this key"},
    416: {**ERROR_RESPONSES[400], "description": "the range begins behind the file's end"},
    409: {**ERROR_RESPONSES[400], "description": "the file is the input of a batch or a fine-tuning job that has not ended"},
    507: {**ERROR_RESPONSES[503], "description": "the server's disk is full"},
}
FileId = Annotated[str, Path(max_length=64, examples=["file-abc123"])]


def responses_of(errors: Responses, *statuses: int) -> Responses:
    return {status: errors[status] for status in statuses}


def add_files(routes: APIRouter, desk: Desk) -> None:
    errors = partial(responses_of, ERRORS)

    @routes.post(
        "/v1/files",
        tags=["batches"],
        summary="Upload the lines of a batch, or the examples of a fine-tuning job",
        response_model=FileObject,
        responses=errors(400, 413, 415, 503, 507),
        openapi_extra=UPLOAD,
    )
    async def upload(request: Request) -> Response:
        try:
            file = await Upload(desk, request).receive()
        except LitmusError as error:
            return WhileSending(error_response(error, request.url.path), desk.settings.max_file_bytes * MAX_READ_FACTOR)
        except ClientDisconnect:
            raise NotReady("the client left before its file was complete", code=CLIENT_LEFT) from None
        return JSONResponse(file.model_dump())

    @routes.get("/v1/files", tags=["batches"], summary="The files of this key", responses=errors(400, 404, 503))
    async def listed(
        request: Request,
        purpose: Annotated[str | None, Query(max_length=32, description="only files with this purpose")] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Annotated[str, Query(pattern="^(asc|desc)$", description="by the time of creation")] = "desc",
        after: Annotated[str | None, Query(max_length=64, description="the id of the last file of the page before")] = None,
    ) -> FileList:
        from app.ledger.listing import Page

        page = Page(limit, after, "asc" if order == "asc" else "desc")
        return await desk.ask(lambda ledger: ledger.files.listed(owner_of(request), page, purpose))

    @routes.get("/v1/files/{file_id}", tags=["batches"], summary="What is known of a file", responses=errors(400, 404, 503))
    async def retrieve(file_id: FileId, request: Request) -> FileObject:
        return await desk.ask(lambda ledger: ledger.files.get(owner_of(request), file_id))

    @routes.get(
        "/v1/files/{file_id}/content",
        tags=["batches"],
        summary="The file itself",
        response_class=FileResponse,
        responses={**errors(400, 404, 416, 503), 200: {"content": {"application/octet-stream": {}}}},
    )
    async def content(file_id: FileId, request: Request) -> FileResponse:
        file = await desk.ask(lambda ledger: ledger.files.get(owner_of(request), file_id))
        found = await desk.run(stat_of, desk.folder, file.id)
        if found is None:
            log.error("the content of %s is gone from jobs.folder", file.id)
            raise NotFound(
                f"the content of file '{file.id}' is gone from the server's disk; delete it, and upload it again",
                param="file_id",
                code=GONE,
            )
        path = desk.folder.file(file.id)
        return Content(path, media_type="application/octet-stream", filename=file.filename, stat_result=found)

    @routes.delete("/v1/files/{file_id}", tags=["batches"], summary="Delete a file", responses=errors(400, 404, 409, 503, 507))
    async def delete(file_id: FileId, request: Request) -> FileDeleted:
        await desk.ask(lambda ledger: ledger.files.delete(owner_of(request), file_id, lambda: desk.folder.delete(file_id)))
        return FileDeleted(id=file_id)


def owner_of(request: Request) -> str:
    """The name of the request's key; empty on a server without keys, where everything belongs to everybody."""
    return request.scope.get("state", {}).get("client") or ""


def is_worker(request: Request) -> bool:
    return bool(request.scope.get("state", {}).get("worker"))


def stat_of(folder: Folder, id: str) -> os.stat_result | None:
    """None: the content is gone. Raises `OSError`."""
    try:
        return folder.file(id).stat()
    except FileNotFoundError:
        return None


class Content(FileResponse):
    """A range that cannot be read is ignored (RFC 9110, 14.2); one behind the file's end has an error in the form of all others."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []
        except RangeNotSatisfiable:
            raise RangeBeyondEnd(f"the range begins behind the file's end: the file has {file_size} bytes", param="Range") from None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except RangeBeyondEnd as error:
            answer = error_response(error, scope["path"], {"Content-Range": f"bytes */{self.headers['content-length']}"})
            await answer(scope, receive, send)


class Upload:
    """One file on its way in: pieces go to the disk as they come, and what is too large is refused as soon as it is."""

    def __init__(self, desk: Desk, request: Request) -> None:
        self._desk, self._request = desk, request
        self._worker, self._owner = is_worker(request), owner_of(request)
        self._held = bytearray()
        self._bytes = 0
        self._room: float = float("inf")

    async def receive(self) -> FileObject:
        """Raises `LitmusError`, with nothing kept."""
        form = Form(self._request.headers.get("content-type", ""), FIELDS, self._take)
        if not self._worker:
            stored = await self._desk.ask(lambda ledger: ledger.files.stored_bytes(self._owner))
            self._room = max(self._desk.settings.max_stored_bytes - stored, 0)
        draft = await self._desk.run(self._desk.folder.draft)
        try:
            async for chunk in self._request.stream():
                form.write(chunk)
                self._check_size()
                if len(self._held) >= PIECE_BYTES:
                    await self._flush(draft)
            form.check_whole()
            if self._bytes == 0 and not self._worker:
                raise InvalidRequest("the file is empty; write one JSON object a line", param="file", code="empty_file")
            await self._flush(draft)
            new = self._new_file(form, draft)
            await self._desk.run(draft.keep)
            file, replaced = await self._add(new)
        finally:
            await self._desk.run(draft.discard)
        for id in replaced:
            await self._desk.run(self._desk.folder.delete, id)
        return file

    async def _add(self, new: Any) -> tuple[FileObject, list[str]]:
        """Raises `BodyTooLarge` where other files of the key came meanwhile, and left no room."""
        try:
            return await self._desk.ask(lambda ledger: ledger.files.add(new))
        except BodyTooLarge:
            await self._desk.run(self._desk.folder.delete, new.id)
            raise

    def _take(self, data: bytes) -> None:
        self._held += data
        self._bytes += len(data)

    def _check_size(self) -> None:
        limit = self._desk.settings.max_file_bytes
        if self._bytes > limit and not self._worker:
            raise BodyTooLarge(f"the file is larger than {limit} bytes (jobs.max_file_bytes); divide it into several", param="file")
        if self._bytes > self._room:
            raise self._no_room()

    async def _flush(self, draft: Draft) -> None:
        held, self._held = bytes(self._held), bytearray()
        await self._desk.run(draft.write, held)

    def _no_room(self) -> BodyTooLarge:
        from app.ledger.files import no_room

        return no_room(self._desk.settings.max_stored_bytes)

    def _new_file(self, form: Form, draft: Draft) -> Any:
        from app.ledger.files import NewFile

        purpose, made_for = form.fields.get("purpose"), self._request.headers.get(MADE_FOR) if self._worker else None
        if purpose is None:
            raise InvalidRequest("'purpose' is missing", param="purpose", code="missing_parameter")
        if purpose not in (MADE if self._worker else UPLOADED):
            raise InvalidRequest(f"'purpose': {purpose[:64]!r} is not kept here; it must be {' or '.join(UPLOADED)}", param="purpose")
        if self._worker and (made_for is None or not MADE[purpose].fullmatch(made_for)):
            raise Forbidden(f"a worker says by the header {MADE_FOR} for what batch or job a file was made")
        lasts_s = lifetime_s(form.fields, self._desk.settings.file_days * DAY_S)
        assert form.filename is not None
        most_bytes = None if self._worker else self._desk.settings.max_stored_bytes
        return NewFile(draft.id, self._owner, draft.bytes, form.filename, purpose, lasts_s, most_bytes, made_for)  # type: ignore[arg-type]


def lifetime_s(fields: dict[str, str], default_s: float) -> float:
    """How long a file is kept. Raises `InvalidRequest`."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return default_s
    if anchor != "created_at":
        raise InvalidRequest("'expires_after[anchor]' must be created_at", param="expires_after[anchor]")
    if seconds is None or not seconds.isascii() or not seconds.isdigit() or not MIN_FILE_S <= int(seconds) <= MAX_FILE_S:
        raise InvalidRequest(
            f"'expires_after[seconds]' must be a whole number from {MIN_FILE_S} to {MAX_FILE_S}", param="expires_after[seconds]"
        )
    return float(seconds)


class WhileSending(Response):
    """An answer to a body that has not come to its end: sent at once, then the rest is read and forgotten, up to a bound.

    Closed at once instead, many clients would report a broken connection and never look at the answer.
    """

    def __init__(self, answer: Response, max_bytes: int) -> None:
        super().__init__()
        self.status_code = answer.status_code
        self._answer, self._max_bytes = answer, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self._answer.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self._answer.body, "more_body": True})
        size = 0
        while size < self._max_bytes:
            message = await receive()
            size += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        await send({"type": "http.response.body", "body": b""})
