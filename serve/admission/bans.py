"""Who is banned and which content is blocked: by the settings, and by a file that may change while the server runs.

Never logs nor quotes what was blocked.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import Forbidden, SetupError
from app.schemas.wire import whole_numbers
from app.settings import SecuritySettings
from serve.admission.watched import WatchedFile

if TYPE_CHECKING:
    from app.tokenizer import Tokenizer  # with transformers, and torch where that is not hidden

INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")  # characters that would split a word without being seen
TOKENS = ("prompt", "input", "tokens")  # fields that may have token ids, or lists of them
JSON_TEXTS = frozenset({"arguments", "json", "guided_json", "json_schema"})  # fields whose text is JSON
NO_TEXT = frozenset({"model", "user"})  # fields of a body whose values are names, not text


class BansFile(BaseModel):
    """What may stand in security.bans_file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    users: list[str] = Field(default=[], description="values of the request field `user`")
    keys: list[str] = Field(default=[], description="names of keys")
    phrases: list[str] = Field(default=[], description="words that are blocked wherever they stand as whole words, in either case")
    patterns: list[str] = Field(default=[], description="regular expressions that are blocked wherever they match, in either case")


@dataclass(frozen=True, slots=True)
class BanList:
    users: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    blocked: tuple[re.Pattern[str], ...] = ()


class Bans:
    """`user in bans` says whether the settings or the file ban that user."""

    def __init__(self, settings: SecuritySettings) -> None:
        """Raises `SetupError` for a file that cannot be read."""
        self.tokenizers: dict[str, Tokenizer] = {}  # by model name, the default model first; filled in when the routes are made
        self.loaded_name: Callable[[str], str] = lambda name: name  # of the model or base that a name stands for; set then, too
        self._users = frozenset(settings.banned_users)
        path = settings.bans_file
        self._file = None if path is None else WatchedFile(path, lambda text: parse_bans(text, str(path)), "security.bans_file")

    def __contains__(self, user: object) -> bool:
        return user in self._users or user in self._current().users

    def check_key(self, name: str) -> None:
        if name in self._current().keys:
            raise Forbidden("this key may not use this server", code="key_banned")

    @property
    def block_content(self) -> bool:
        return bool(self._current().blocked)

    def check_content(self, body: Any) -> None:
        """Raises `Forbidden` if a text of this request body is blocked."""
        text = plain("\n".join([*texts_of(body), *self._texts_of_tokens(body)]))
        if any(pattern.search(text) for pattern in self._current().blocked):
            raise Forbidden("this request contains content that this server does not serve", code="content_blocked")

    def _texts_of_tokens(self, body: Any) -> Iterator[str]:
        """The texts of fields that may have token ids instead."""
        if not isinstance(body, dict) or not self.tokenizers:
            return
        default = next(iter(self.tokenizers.values()))
        model = body.get("model")
        tokenizer = self.tokenizers.get(self.loaded_name(model), default) if isinstance(model, str) else default
        for sent in filter(None, (body.get(name) for name in TOKENS if isinstance(body.get(name), list))):
            for item in [each for each in sent if isinstance(each, list)] or [sent]:
                yield tokenizer.decode([id for id in whole_numbers(item) if isinstance(id, int) and 0 <= id < len(tokenizer)])

    def _current(self) -> BanList:
        return BanList() if self._file is None else self._file.value()


def texts_of(body: Any) -> Iterator[str]:
    """Every text of a JSON value, in its order, the names of its fields included; texts that stand in parts also as one, and JSON in a text
    also as what it says. Not recursive: a body may be nested deeper than Python calls.
    """
    others: list[str] = []
    rest = [{name: value for name, value in body.items() if name not in NO_TEXT} if isinstance(body, dict) else body]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            parts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
            others += ["".join(parts), "\n".join(parts)] if len(parts) > 1 else []
            rest += reversed(value)
        elif isinstance(value, dict):
            others += value
            rest += reversed([_decoded(item) if name in JSON_TEXTS else item for name, item in value.items()])
    yield from others


def _decoded(value: Any) -> Any:
    """A text of JSON, such as the arguments of a tool call, and what it says."""
    try:
        return [value, json.loads(value)] if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def plain(text: str) -> str:
    """One form for what looks alike: wide and narrow, upper and lower case, with invisible characters and without."""
    return INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold()


def parse_bans(text: str, path: str) -> BanList:
    """Raises `SetupError`, which names the entry but does not quote it."""
    try:
        content = BansFile.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise SetupError(f"{path} is not YAML{f' (line {mark.line + 1})' if mark else ''}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        names = ", ".join(BansFile.model_fields)
        raise SetupError(f"{path}: {where}: {first['msg']}; the file has the lists {names}") from error
    return BanList(frozenset(content.users), frozenset(content.keys), _blocked(content, path))


def _blocked(content: BansFile, path: str) -> tuple[re.Pattern[str], ...]:
    blocked: list[re.Pattern[str]] = []
    for index, phrase in enumerate(content.phrases):
        words = plain(phrase).split()
        if not words:
            raise SetupError(f"{path}: phrases.{index} is blank, and would block every text")
        blocked.append(re.compile(r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)"))
    for index, pattern in enumerate(content.patterns):
        try:
            blocked.append(re.compile(pattern, re.IGNORECASE))
        except re.error as error:
            raise SetupError(f"{path}: patterns.{index} is not a regular expression ({error.msg})") from error
        if blocked[-1].search(""):
            raise SetupError(f"{path}: patterns.{index} matches an empty text, and would block every request")
    return tuple(blocked)
