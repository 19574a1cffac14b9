"""Text to token ids and back, chat template, and what the model's folder says about ends and sampling. Knows no weights.

Lives in the API process (to refuse what cannot be served before it is queued) and in the worker (to show what was sampled).
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from app.errors import InvalidRequest, SetupError


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text for scoring. `offsets[i]` are the characters `(start, end)` of token i in the text; (0, 0) for a token put before it."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


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
        self._lock = threading.Lock()  # how special tokens are read is a state of the one tokenizer, not an argument of the call

    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        named = self.defaults.get("eos_token_id")
        ids = named if isinstance(named, list) else [named]
        return frozenset(int(id) for id in [*ids, self.base.eos_token_id] if id is not None)

    def chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Ids of the conversation with the mark that opens the assistant's turn."""
        if not self.chats:
            raise InvalidRequest("this model has no chat template: use /v1/completions", param="messages")
        for index, message in enumerate(messages):
            check_unicode(message["content"], f"messages.{index}.content")
        try:
            text = self.base.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}", param="messages") from error
        with self._lock:
            return tuple(self.base.encode(str(text), add_special_tokens=False, split_special_tokens=False))

    def encode(self, text: str, param: str) -> tuple[int, ...]:
        """Ids as the tokenizer does by itself: with a BOS where the model was trained with one."""
        check_unicode(text, param)
        with self._lock:
            return tuple(self.base.encode(text, split_special_tokens=False))

    def read(self, text: str, param: str) -> Encoded:
        """Ids and offsets for scoring; names of control tokens inside the text are read as plain text."""
        check_unicode(text, param)
        with self._lock:
            out = self.base(text, return_offsets_mapping=True, split_special_tokens=True)
        return Encoded(tuple(out["input_ids"]), tuple((int(start), int(end)) for start, end in out["offset_mapping"]))

    def decode(self, ids: list[int]) -> str:
        return str(self.base.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def __len__(self) -> int:
        return len(self.base)


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
