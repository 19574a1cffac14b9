"""Known fields that the current request is served without, because its model has no use for them: its answer names them in a header.

Knows neither the router nor the header.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from app.errors import InvalidRequest

_FIELDS: ContextVar[list[str] | None] = ContextVar("ignored_fields", default=None)


def ignore(param: str, why: str, code: str = "unsupported_parameter") -> None:
    """Leave a field out. Raises `InvalidRequest` where nothing may be left out, as with `server.strict`."""
    fields = _FIELDS.get()
    if fields is None:
        raise InvalidRequest(f"{param}: {why}", param=param, code=code)
    fields.append(param)


@contextmanager
def collected_in(fields: list[str] | None) -> Iterator[None]:
    """While the context is open, `fields` gets what is left out; with None nothing may be."""
    token = _FIELDS.set(fields)
    try:
        yield
    finally:
        _FIELDS.reset(token)
