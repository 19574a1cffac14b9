"""Keys: who may use the server, and with which role. Knows the lines that stand for keys, never stores a key itself.

A line is `name role sha256:digest`. The digest is of the whole key. A key is 32 random bytes, so a plain SHA-256 hides it: a slow hash
protects what can be guessed.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from app.errors import SetupError
from serve.admission.watched import WatchedFile

Role = Literal["user", "admin"]
PREFIX = "litmus-"  # by which programs that look for leaked secrets find a key
RANDOM_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
LINE = re.compile(rf"({NAME.pattern})\s+(user|admin)\s+sha256:([0-9a-f]{{64}})")


@dataclass(frozen=True, slots=True)
class Key:
    """A name may have several keys, so that a new one can be handed out before the old one is removed."""

    name: str
    role: Role
    digest: bytes

    @property
    def line(self) -> str:
        return f"{self.name} {self.role} sha256:{self.digest.hex()}"


class Keys:
    """The keys of the settings and of the file, which may change while the server runs."""

    def __init__(self, lines: Sequence[str], path: str | None) -> None:
        """Raises `SetupError` for a line that is no key, and when there is no key at all."""
        self._fixed = parse_keys(lines, "security.keys, entry")
        self._file = (
            None if path is None else WatchedFile(path, lambda text: parse_keys(text.splitlines(), f"{path}, line"), "security.keys_file")
        )
        if not self._all():
            raise SetupError(
                f"security.keys_file: {path} holds no key, so nobody could use the server; `python -m serve.keys new` makes one"
            )

    def find(self, secret: str) -> Key | None:
        """Compares with every key, and each in constant time, so that the time says nothing."""
        digest, found = digest_of(secret), None
        for key in self._all():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def has(self, name: str) -> bool:
        """Whether there is a key of that name."""
        return any(key.name == name for key in self._all())

    def _all(self) -> tuple[Key, ...]:
        return self._fixed if self._file is None else self._fixed + self._file.value()


def new_key(name: str, role: Role) -> tuple[str, Key]:
    """The key for its owner, and what the server keeps of it."""
    secret = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    return secret, Key(name, role, digest_of(secret))


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def parse_keys(lines: Iterable[str], where: str) -> tuple[Key, ...]:
    """Blank lines and those that begin with # are left out. An error does not quote its line, which may hold a key by mistake."""
    keys: dict[bytes, Key] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise SetupError(
                f"{where} {number}: this is no key; write `name role sha256:digest`, where role is user or admin, as "
                "`python -m serve.keys new` prints it"
            )
        key = Key(match[1], cast(Role, match[2]), bytes.fromhex(match[3]))
        if keys.setdefault(key.digest, key) is not key:
            raise SetupError(f"{where} {number}: this key was named before, for {keys[key.digest].name}; make one for each")
    return tuple(keys.values())
