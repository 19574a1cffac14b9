"""Text to token ids and back, chat template, and what the model's folder says about ends and sampling. Knows no weights.

Lives in the API process (to refuse what cannot be served before it is queued) and in the worker (to show what was sampled).
"""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from app.errors import InvalidRequest, SetupError
from app.forms.tools import Format, Marks, NoTools, learn


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text for scoring. `offsets[i]` are the characters `(start, end)` of token i in the text; (0, 0) for a token put before it."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def starts(self) -> Iterator[int]:
        """Where each token begins, the blanks that some tokenizers leave out of their offsets counted to the token behind them."""
        end = 0
        for first, last in self.offsets:
            yield min(first, end) if last else end
            end = max(end, last)


@dataclass(frozen=True, slots=True)
class Piece:
    """One token by itself. `data` are its bytes within a text, `opening` those where a text begins with it: some leave a blank out."""

    data: bytes
    opening: bytes
    control: bool  # not shown in an answer

    @property
    def text(self) -> str:
        """As OpenAI spells it: bytes that are no characters as `bytes:\\xe7\\x8c`."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.data)


class Tokenizer:
    """Raises `SetupError` when `path` (folder or hub name) holds no fast tokenizer."""

    def __init__(self, path: str) -> None:
        try:
            self.base: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise SetupError(f"{path}: no tokenizer could be loaded: {first_line(error)}") from error
        if not self.base.is_fast:
            raise SetupError(f"{path}: its tokenizer has no tokenizer.json; Litmus needs one for character offsets")
        self.defaults = generation_defaults(path)
        self.chats = bool(self.base.chat_template)
        self._pieces: dict[int, Piece] = {}
        self._controls = {id: token.content for id, token in self.base.added_tokens_decoder.items() if token.special}
        self._decoders = decoder_types(self.base)
        self._lock = threading.Lock()  # how special tokens are read is a state of the one tokenizer, not an argument of the call

    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        named = self.defaults.get("eos_token_id")
        ids = named if isinstance(named, list) else [named]
        return frozenset(int(id) for id in [*ids, self.base.eos_token_id] if id is not None)

    def chat(self, messages: Sequence[dict[str, Any]], opened: bool = True, special: bool = False) -> tuple[int, ...]:
        """Ids of the conversation; `opened` adds what opens the assistant's turn, `special` what the tokenizer puts around a text."""
        return self.rendered(self.render(messages, None, opened), special)

    def render(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, opened: bool) -> str:
        """What the chat template makes of a conversation."""
        if not self.chats:
            raise InvalidRequest("this model has no chat template: use /v1/completions", param="messages")
        given: Any = None if tools is None else list(tools)
        try:
            return str(self.base.apply_chat_template(list(messages), tools=given, tokenize=False, add_generation_prompt=opened))
        except RecursionError as error:
            raise InvalidRequest("the messages are nested too deep for the model's chat template", param="messages") from error
        except (TemplateError, TypeError, KeyError) as error:  # TypeError, KeyError: a template's own expression met what it did not expect
            raise InvalidRequest(f"the model's chat template refuses these messages: {first_line(error)}", param="messages") from error

    def rendered(self, text: str, special: bool = False) -> tuple[int, ...]:
        """Ids of what `render` made."""
        with self._lock:
            return tuple(self.base.encode(text, add_special_tokens=special, split_special_tokens=False))

    @cached_property
    def calls(self) -> Format | NoTools:
        """How the model writes calls of tools, as its chat template shows."""
        ids = {token.content: id for id, token in self.base.added_tokens_decoder.items()}
        ends = frozenset(str(name) for name in self.base.convert_ids_to_tokens(sorted(self.ends())))
        return learn(self.render, Marks(ids, frozenset(self._controls.values()), ends))

    def encode(self, text: str, param: str, special: bool = True) -> tuple[int, ...]:
        """Ids as the tokenizer does by itself: with a BOS where the model was trained with one, unless not `special`."""
        check_unicode(text, param)
        with self._lock:
            return tuple(self.base.encode(text, add_special_tokens=special, split_special_tokens=False))

    def read(self, text: str, param: str, plain: bool = True) -> Encoded:
        """Ids and offsets; if `plain`, as for scoring, names of control tokens inside the text are read as text."""
        check_unicode(text, param)
        with self._lock:
            out = self.base(text, return_offsets_mapping=True, split_special_tokens=plain)
        return Encoded(tuple(out["input_ids"]), tuple((int(start), int(end)) for start, end in out["offset_mapping"]))

    def decode(self, ids: list[int]) -> str:
        return str(self.base.backend_tokenizer.decode(ids, skip_special_tokens=True))

    def sequences(self, word: str, param: str) -> list[tuple[int, ...]]:
        """The tokens of a word where a text begins with it, and where it follows a blank if those do not end with the same."""
        check_unicode(word, param)
        bare = word.lstrip() or word
        with self._lock:
            first, inner = (
                tuple(self.base.encode(text, add_special_tokens=False, split_special_tokens=False)) for text in (bare, f" {bare}")
            )
        return [tokens for tokens in ((first,) if inner[-len(first) :] == first else (first, inner)) if tokens]

    def piece(self, id: int) -> Piece:
        """A token's own text and bytes; nothing for an id without a token, which the model may have room for."""
        found = self._pieces.get(id)
        if found is None:
            found = self._pieces[id] = self._piece(id)
        return found

    def _piece(self, id: int) -> Piece:
        token = self.base.backend_tokenizer.id_to_token(id)
        if token is None or id in self._controls:
            return Piece(self._controls.get(id, "").encode(), b"", True)
        if "ByteLevel" in self._decoders:
            known = all(letter in BYTES for letter in token)
            data = bytes(BYTES[letter] for letter in token) if known else token.encode()
            return Piece(data, data, False)
        byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
        if byte and "ByteFallback" in self._decoders:
            data = bytes.fromhex(byte[1])
            return Piece(data, data, False)
        decoder = self.base.backend_tokenizer.decoder
        opening = token if decoder is None else decoder.decode([token])
        twice = token * 2 if decoder is None else decoder.decode([token, token])
        return Piece(twice[len(opening) :].encode(), opening.encode(), False)  # what the second one adds

    def spellings(self, ids: Sequence[int]) -> list[str]:
        """How the vocabulary writes each of the tokens."""
        return [str(token) for token in self.base.convert_ids_to_tokens(list(ids))]

    def full(self, ids: Sequence[int]) -> str:
        """Their text with the names of control tokens, which `decode` leaves out."""
        return str(self.base.backend_tokenizer.decode(list(ids), skip_special_tokens=False))

    def __len__(self) -> int:
        return len(self.base)


def byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: itself, or for the unprintable ones the next beyond 255."""
    letters = sorted(ByteLevel.alphabet())
    plain = [letter for letter in letters if ord(letter) < 256]
    others = [byte for byte in range(256) if chr(byte) not in plain]
    return {letter: ord(letter) for letter in plain} | dict(zip(letters[len(plain) :], others, strict=True))


BYTES = byte_letters()


def decoder_types(base: PreTrainedTokenizerBase) -> frozenset[str]:
    decoder = base.backend_tokenizer.decoder
    if decoder is None:
        return frozenset()
    parts = json.loads(decoder.__getstate__())
    return frozenset(part["type"] for part in [parts, *parts.get("decoders", [])])


def check_unicode(text: str, param: str) -> None:
    """JSON may spell half a surrogate pair, which is no character and cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{param}: character {error.start} is a lone surrogate, not valid Unicode", param=param) from error


def generation_defaults(path: str) -> dict[str, Any]:
    """The model's generation_config.json as it is written, or nothing."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(path, "generation_config.json", **quiet)
    return dict(json.loads(Path(file).read_text())) if file else {}


def first_line(error: BaseException) -> str:
    """What a library said, short enough for a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
