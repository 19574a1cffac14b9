"""A multipart form with one file, read while it comes in: known fields are kept, the file goes on in pieces. Knows no disk.

FastAPI's own form would keep a file of any size before the route could refuse it.
"""

from collections.abc import Callable
from email.message import Message
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from app.errors import InvalidRequest, UnsupportedMediaType
from serve.wire.ignored import ignore

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 1024
MAX_HEADER_BYTES = 4096  # of a part
PARSED_BYTES = 2**20  # of a header that the parser takes: more than come at once, so that ours is the one that refuses it
ESCAPED = {"%22": '"', "%0D": "\r", "%0A": "\n"}  # how browsers and httpx write these in a file's name, and nothing else
MAX_PARTS = 16
MAX_NAME = 255  # characters of a file's name


class Form:
    """Feed it with `write`; `file` is called with the pieces of the part named `file`. Raises `InvalidRequest` for what is no such form."""

    def __init__(self, content_type: str, allowed: frozenset[str], file: Callable[[bytes], None]) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._allowed, self._file = allowed, file
        self._parts, self._name, self._header, self._headers = 0, "", [b"", b""], Message()
        self._value = bytearray()
        self._ended = False
        try:
            self._parser = MultipartParser(_boundary(content_type), self._callbacks(), max_header_size=PARSED_BYTES)
        except FormParserError as error:
            raise UnsupportedMediaType("the boundary of the form is too long") from error

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": lambda data, start, end: self._add(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def write(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest("the body is not the multipart form that its Content-Type names", code="invalid_form") from error

    def check_whole(self) -> None:
        """Raises `InvalidRequest` for a form that was cut off, or that has no file."""
        if not self._ended:
            raise InvalidRequest("the form ends before its last boundary", code="invalid_form")
        if self.filename is None:
            raise InvalidRequest(
                "'file' is missing: send the file as a part of that name, with a file name", param="file", code="missing_parameter"
            )

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"the form has more than {MAX_PARTS} parts", code="invalid_form")
        self._headers, self._value = Message(), bytearray()

    def _add_header(self, which: int, data: bytes) -> None:
        self._header[which] += data
        if len(self._header[which]) > MAX_HEADER_BYTES:
            raise InvalidRequest(
                f"a part of the form has a header of more than {MAX_HEADER_BYTES} bytes; a shorter file name may do", code="invalid_form"
            )

    def _end_header(self) -> None:
        name, value = (part.decode("utf-8", "replace") for part in self._header)
        self._headers[name] = value.replace("\r", " ").replace("\n", " ")
        self._header = [b"", b""]

    def _end_headers(self) -> None:
        name = self._headers.get_param("name", header="content-disposition")
        self._name = name if isinstance(name, str) else ""
        filename = self._headers.get_filename()
        if not self._name:
            raise InvalidRequest("a part of the form has no name", code="invalid_form")
        if self._name not in self._allowed:
            ignore(self._name[:64], "unknown parameter", "unknown_parameter")
            return
        if self._name in self.fields or (self._name == "file" and self.filename is not None):
            raise InvalidRequest(f"'{self._name}' is there twice", param=self._name)
        if (self._name == "file") != (filename is not None):
            raise InvalidRequest(f"'{self._name}': a file has a file name, and no other field has", param=self._name)
        if filename is not None:
            is_plain = isinstance(self._headers.get_param("filename", header="content-disposition"), str)  # not RFC 2231's filename*
            self.filename = shown_name(unescaped(filename) if is_plain else filename)

    def _add(self, data: bytes) -> None:
        if self._name == "file":
            self._file(data)
            return
        self._value += data
        if len(self._value) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"'{self._name}' is longer than {MAX_FIELD_BYTES} bytes", param=self._name)

    def _end_part(self) -> None:
        if self._name in self._allowed and self._name != "file":
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True


def _boundary(content_type: str) -> bytes:
    """Raises `UnsupportedMediaType`."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise UnsupportedMediaType("a file is uploaded as multipart/form-data with a boundary in the header Content-Type")
    return boundary.encode("latin-1", "replace")


def unescaped(filename: str) -> str:
    for escape, letter in ESCAPED.items():
        filename = filename.replace(escape, letter)
    return filename


def shown_name(filename: str) -> str:
    """What is kept of a client's name of a file: its last part, without what cannot be printed. It never becomes a path."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:MAX_NAME] or "file"
