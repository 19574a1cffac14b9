"""The most telling of pydantic's errors about a body, as a sentence that names the field. Knows no route but by its path."""

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from app.errors import InvalidRequest
from serve.wire.unsupported import instead_of, is_unsupported

PREFIX = "Value error, "
MAX_ERRORS = 256  # of a body that are looked at; pydantic has them in the order of the fields
OBJECT_TYPES = frozenset({"model_type", "model_attributes_type"})  # whose messages name Python's classes
Path = tuple[str | int, ...]


def invalid_request_of(error: RequestValidationError, route: str) -> InvalidRequest:
    """For a field that may have several types, pydantic reports an error for each of them. The most telling one is not a mismatch of types,
    and has the longest path.
    """
    errors = error.errors()[:MAX_ERRORS]
    not_type_errors = [item for item in errors if not item["type"].endswith("_type")]
    first = max(not_type_errors, key=lambda item: len(item["loc"])) if not_type_errors else _of_the_likeliest_type(errors)
    loc, extra = first["loc"][1:], first["type"] == "extra_forbidden"
    path = [*_path(loc[:-1]), str(loc[-1])] if extra else [*map(str, _path(loc))]
    misfit = first.get("ctx", {}).get("param")  # of an object whose fields do not fit together
    param = ".".join([*map(str, path), *([misfit] if misfit else [])]) or None
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="invalid_json")
    if extra or first["type"] == "none_required":
        return _not_taken(path, param or "", route, known=not extra or is_unsupported(path))
    if first["type"] == "missing":
        return InvalidRequest(f"'{param}' is missing" if param else "the body is missing", param=param, code="missing_parameter")
    message = "Input should be an object" if first["type"] in OBJECT_TYPES else first["msg"].removeprefix(PREFIX)
    if not path and first["type"] in {"value_error", "contradiction"}:
        return InvalidRequest(message, param=param)
    if param is None:
        return InvalidRequest(f"the body must be a JSON object: {message}", code="invalid_type")
    return InvalidRequest(f"'{param}': {message}", param=param)


def _not_taken(path: Sequence[str | int], param: str, route: str, known: bool) -> InvalidRequest:
    if not known:
        return InvalidRequest(f"unknown parameter '{param}'", param=param, code="unknown_parameter")
    instead = instead_of(param, route) if len(path) == 1 else None
    advice = f"; use {instead}" if instead else ""
    return InvalidRequest(f"parameter '{param}' is not supported by {route}{advice}", param=param, code="unsupported_parameter")


def _of_the_likeliest_type(errors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of a value that fits none of several types the error of the type that it fits longest, or of all of them that it fits as long."""
    loc = errors[0]["loc"]
    members = [place for place, part in enumerate(loc) if _is_union_member(str(part))]
    if not members:
        return errors[0]
    root = loc[: members[0]]
    first_of_member: dict[Any, dict[str, Any]] = {}
    for item in errors:
        if item["loc"][: len(root)] == root:
            first_of_member.setdefault(tuple(part for part in item["loc"] if _is_union_member(str(part))), item)
    likeliest = max((_path(item["loc"]) for item in first_of_member.values()), key=lambda path: [(str(type(part)), part) for part in path])
    found = [item for item in first_of_member.values() if _path(item["loc"]) == likeliest]
    if len(found) == 1:
        return found[0]
    kinds = [message.removeprefix("Input should be ") for message in dict.fromkeys(item["msg"] for item in found)]
    return {**found[0], "type": "union_type", "msg": f"Input should be {' or '.join(kinds)}"}


def _path(loc: Sequence[str | int]) -> Path:
    """Pydantic's path without the names of members of unions."""
    return tuple(part for part in loc if not _is_union_member(str(part)))


def _is_union_member(part: str) -> bool:
    """Whether a part of pydantic's error path names a member of a union (`str`, `list[TextPart]`), not a field."""
    return part in {"str", "int"} or not part.replace("_", "").isalnum()
