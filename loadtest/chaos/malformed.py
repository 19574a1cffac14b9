"""Malformed and half-valid requests over all routes of an OpenAPI document. The same seed and number give the same request. Pure."""

import copy
import functools
import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from loadtest.chaos.oddities import RAW, VALUES

JSON_HEADERS = {"Content-Type": "application/json"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "G\u00c9T")
CHEAP = {"max_tokens": 2, "max_output_tokens": 2, "max_length": 2, "max_completion_tokens": 2}  # half-valid requests may be served
DEEP = 3000
BOMB_BYTES = 30_000_000


@dataclass(frozen=True, slots=True)
class Shot:
    """One request; `raw`: the bytes of a whole connection instead. `kind` names what is wrong with it."""

    number: int
    kind: str
    method: str = "GET"
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """An operation of the document, with the bodies that it gives as examples."""

    path: str
    method: str
    examples: tuple[Mapping[str, Any], ...] = ()
    fields: tuple[str, ...] = ()
    query: tuple[str, ...] = ()


def targets(document: Mapping[str, Any]) -> list[Target]:
    found = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            query = tuple(parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query")
            schema = _body_schema(document, operation)
            examples, fields = tuple(schema.get("examples", ())), tuple(schema.get("properties", ()))
            found.append(Target(path, method.upper(), examples, fields, query))
    return found


def _body_schema(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Mapping[str, Any]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    schema: Mapping[str, Any] = document["components"]["schemas"].get(name, {})
    return schema


def shot(number: int, seed: int, found: Sequence[Target]) -> Shot:
    """The request of this number."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(list(MAKERS), [weight for weight, _ in MAKERS.values()])[0]
    posts = [target for target in found if target.examples]
    target = rng.choice(posts if kind in OF_BODIES else found)
    return MAKERS[kind][1](Shot(number, kind, target.method, target.path), target, rng)


def _with_body(made: Shot, body: bytes, headers: Mapping[str, str] = JSON_HEADERS, method: str | None = None) -> Shot:
    return Shot(made.number, made.kind, method or made.method, made.path, headers, body)


def _example(target: Target, rng: random.Random) -> dict[str, Any]:
    """An example that costs little if it is served."""
    body: dict[str, Any] = copy.deepcopy(dict(rng.choice(target.examples)))
    body.update({name: value for name, value in CHEAP.items() if name in target.fields and (name in body or name == "max_tokens")})
    return body


def _wrong_field(made: Shot, target: Target, rng: random.Random) -> Shot:
    body = _example(target, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        body[rng.choice([*target.fields, "x", "", "__proto__"])] = rng.choice(VALUES)
    return _with_body(made, encode(body))


def _wrong_inside(made: Shot, target: Target, rng: random.Random) -> Shot:
    """Something is replaced, removed, doubled or wrapped anywhere in the body."""
    body: Any = _example(target, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        body = changed(body, rng)
    return _with_body(made, encode(body))


def changed(value: Any, rng: random.Random) -> Any:
    """A copy with one change at a random depth."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        act = rng.random()
        if act < 0.1:
            return {inner: value[inner] for inner in value if inner != name}
        return {**value, name: changed(value[name], rng)} if act < 0.9 else {**value, name + rng.choice("\x00 s"): value[name]}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], changed(value[index], rng), *value[index + rng.choice((0, 1, 1)) :]]
    return rng.choice([rng.choice(VALUES), [value], {"a": value}, str(value), [value, value]])


def _no_object(made: Shot, target: Target, rng: random.Random) -> Shot:
    return _with_body(made, encode(rng.choice(VALUES)))


def _deep(made: Shot, target: Target, rng: random.Random) -> Shot:
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('{"messages":[', "]}")))
    depth = rng.choice((50, 500, 990, DEEP))
    nested = opening * depth + "1" + closing * rng.choice((depth, depth, depth - 1))
    name = rng.choice([*target.fields, "x"])
    return _with_body(made, rng.choice((nested, encode(_example(target, rng)).decode()[:-1] + f',"{name}":{nested}}}')).encode())


def _bytes(made: Shot, target: Target, rng: random.Random) -> Shot:
    """No JSON: random bytes, or an example that is cut off or damaged."""
    whole = bytearray(encode(_example(target, rng)))
    act = rng.randrange(3)
    if act == 0:
        return _with_body(made, rng.randbytes(rng.randint(0, 200)))
    if act == 1:
        return _with_body(made, bytes(whole[: rng.randrange(len(whole))]))
    for _ in range(rng.randint(1, 5)):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return _with_body(made, bytes(whole))


def _encoding(made: Shot, target: Target, rng: random.Random) -> Shot:
    """The body is in another encoding than its headers say, or in one that is not read."""
    body = encode(_example(target, rng))
    text = body.decode()
    packed = gzip.compress(body)
    encoded, headers = rng.choice(
        [(body, {"Content-Encoding": name}) for name in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "x" * 300, "")]
        + [
            (packed[: len(packed) // 2], {"Content-Encoding": "gzip"}),
            (packed, {"Content-Encoding": "gzip, identity"}),
            (packed, {}),
            (bomb(), {"Content-Encoding": "gzip"}),
            (gzip.compress(packed), {"Content-Encoding": "gzip, gzip"}),
            (text.encode("utf-16"), {}),
            (text.encode("utf-8-sig"), {}),
            (text.encode("utf-32"), {}),
            (body, {"Content-Type": "application/json; charset=utf-16"}),
            (body, {"Content-Type": "application/json; charset=" + "\u20ac"}),
            (body, {"Content-Type": "text/plain"}),
            (body, {"Content-Type": "multipart/form-data; boundary=x"}),
            (body, {"Content-Type": "application/x-www-form-urlencoded"}),
            (body, {"Content-Type": ""}),
            (b"\xff\xfe" + body, {}),
        ]
    )
    return _with_body(made, encoded, {**JSON_HEADERS, **headers})


@functools.cache
def bomb() -> bytes:
    """Small as it is sent, and larger than any limit when it is decompressed."""
    return gzip.compress(b" " * BOMB_BYTES)


def _method(made: Shot, target: Target, rng: random.Random) -> Shot:
    body = encode(_example(target, rng)) if target.examples and rng.random() < 0.5 else b""
    return _with_body(made, body, method=rng.choice(METHODS))


def _where(made: Shot, target: Target, rng: random.Random) -> Shot:
    """A wrong path, or wrong values in the query."""
    odd = quote(str(rng.choice(VALUES)).encode("utf-8", "replace")[:500], safe=rng.choice(("", "/.")))
    path = target.path.replace("{name}", odd).replace("{name:path}", odd)
    path += rng.choice(("", "/", "//", "/..", "/../../etc/passwd", "/%2e%2e", "%00", f"/{odd}", ";a=b"))
    names = [*target.query, "model", "x"]
    query = "&".join(f"{rng.choice(names)}={rng.choice((odd, '-1', '0', '1e9', '%ff', ''))}" for _ in range(rng.randrange(4)))
    return Shot(made.number, made.kind, made.method, f"{path}?{query}" if query else path, JSON_HEADERS)


def _headers(made: Shot, target: Target, rng: random.Random) -> Shot:
    odd = rng.choice(("", "a" * 9000, "\u20ac", "*/*;q=x", "-1", "bytes=0-", "Bearer", "Bearer \u00ff", "null", "9" * 400))
    names = (
        "Accept",
        "Authorization",
        "X-Request-Id",
        "Origin",
        "Host",
        "Range",
        "Accept-Encoding",
        "Cookie",
        "X-Forwarded-For",
        "Expect",
        "Connection",
    )
    body = encode(_example(target, rng)) if target.examples else b""
    return _with_body(made, body, {**JSON_HEADERS, rng.choice(names): odd})


def _raw(made: Shot, target: Target, rng: random.Random) -> Shot:
    """Bytes that are no request, or hardly one, on a connection of their own."""
    raw = rng.choice((*RAW, rng.randbytes(rng.randint(1, 2000))))
    return Shot(made.number, made.kind, "-", "-", raw=raw)


Maker = Callable[[Shot, Target, random.Random], Shot]
MAKERS: dict[str, tuple[int, Maker]] = {
    "wrong field": (35, _wrong_field),
    "wrong inside": (25, _wrong_inside),
    "no object": (3, _no_object),
    "deep": (5, _deep),
    "bytes": (8, _bytes),
    "encoding": (6, _encoding),
    "method": (5, _method),
    "where": (7, _where),
    "headers": (3, _headers),
    "raw": (3, _raw),
}  # the number is a weight
OF_BODIES = {"wrong field", "wrong inside", "no object", "deep", "bytes", "encoding"}


def encode(value: Any) -> bytes:
    """As JSON in ASCII, with what JSON has no place for as Python writes it: NaN, Infinity, and lone surrogates as escapes."""
    return json.dumps(value).encode()
