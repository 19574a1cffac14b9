"""Text to token ids with the offsets of their characters, and back."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.errors import InvalidRequest, SetupError
from app.forms.tools import AddedTokens
from app.models.source import source_of
from app.models.template import read_template
from app.models.vocabulary import create_tokenizer, generation_values
from app.tokenizer.chat import ChatTemplate
from app.tokenizer.loading import load_tokenizer, read_generation_config
from app.tokenizer.pieces import Piece, Pieces


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized text. Token i covers the characters `offsets[i] = (start, end)`; (0, 0) for a special token that was added (BOS, EOS)."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def token_starts(self) -> Iterator[int]:
        """The character at which each token begins. Some tokenizers leave spaces out of the offsets; such a space counts to the token after
        it.
        """
        previous_end = 0
        for start, end in self.offsets:
            yield min(start, previous_end) if end else previous_end
            previous_end = max(previous_end, end)


class Tokenizer:
    """`chat_template` is a file that takes the place of the model's own template. Raises `SetupError` when `path` (folder, hub name or
    GGUF file) holds no fast tokenizer, and for a template that is none.
    """

    def __init__(self, path: str, chat_template: str | None = None) -> None:
        source = source_of(path)
        file = source.gguf
        self.base: PreTrainedTokenizerBase = load_tokenizer(source) if file is None else create_tokenizer(file)
        if not self.base.is_fast:
            raise SetupError(f"{path}: its tokenizer has no tokenizer.json; Litmus needs one for character offsets")
        if chat_template is not None:
            self.base.chat_template = read_template(chat_template)
        self.generation_config = read_generation_config(path) if file is None else generation_values(file)
        self._special_tokens = {id: token.content for id, token in self.base.added_tokens_decoder.items() if token.special}
        self._lock = threading.Lock()  # transformers sets `split_special_tokens` on the shared tokenizer, not for the one call

    def end_tokens(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        eos = self.generation_config.get("eos_token_id")
        ids = eos if isinstance(eos, list) else [eos]
        return frozenset(int(id) for id in [*ids, self.base.eos_token_id] if id is not None)

    def encode_chat(
        self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True, add_special_tokens: bool = False
    ) -> tuple[int, ...]:
        """Ids of a conversation as the chat template renders it. `add_special_tokens` adds the tokenizer's own BOS or EOS around it."""
        return self.encode_rendered(self.chat.render(messages, None, add_generation_prompt), add_special_tokens)

    def encode_rendered(self, text: str, add_special_tokens: bool = False) -> tuple[int, ...]:
        """Ids of a text from `chat.render`. The names of special tokens in it become those tokens."""
        with self._lock:
            return tuple(self.base.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=False))

    @cached_property
    def chat(self) -> ChatTemplate:
        ids = {token.content: id for id, token in self.base.added_tokens_decoder.items()}
        end_tokens = frozenset(str(token) for token in self.base.convert_ids_to_tokens(sorted(self.end_tokens())))
        return ChatTemplate(self.base, AddedTokens(ids, frozenset(self._special_tokens.values()), end_tokens))

    @property
    def added_tokens(self) -> AddedTokens:
        return self.chat.added_tokens

    @cached_property
    def _hidden_tokens(self) -> dict[int, str]:
        hidden = self.chat.hidden_tokens
        return {id: token for id, token in self._special_tokens.items() if token in hidden}

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.base, self._hidden_tokens)

    def encode(self, text: str, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Ids of a text. By default the tokenizer adds the special tokens the model was trained with, such as BOS.

        Raises `InvalidRequest` naming `param` if the text is not valid Unicode.
        """
        check_unicode(text, param)
        with self._lock:
            return tuple(self.base.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=False))

    def encode_with_offsets(self, text: str, param: str, split_special_tokens: bool = True, add_special_tokens: bool = True) -> Encoded:
        """Ids and character offsets. By default, as for scoring, the name of a special token inside the text is tokenized as plain text."""
        check_unicode(text, param)
        with self._lock:
            encoding = self.base(
                text, return_offsets_mapping=True, split_special_tokens=split_special_tokens, add_special_tokens=add_special_tokens
            )
        return Encoded(tuple(encoding["input_ids"]), tuple((int(start), int(end)) for start, end in encoding["offset_mapping"]))

    def decode(self, ids: list[int]) -> str:
        """The text, without special tokens other than those that mark a thought or a tool call."""
        hidden = self._hidden_tokens
        return str(self.base.backend_tokenizer.decode([id for id in ids if id not in hidden], skip_special_tokens=False))

    def word_encodings(self, word: str, param: str) -> list[tuple[int, ...]]:
        """The tokens that spell a word: at the start of a text, and after a space too, unless those end with the same tokens."""
        check_unicode(word, param)
        bare = word.lstrip() or word
        with self._lock:
            at_start, after_space = (
                tuple(self.base.encode(text, add_special_tokens=False, split_special_tokens=False)) for text in (bare, f" {bare}")
            )
        encodings = (at_start,) if after_space[-len(at_start) :] == at_start else (at_start, after_space)
        return [ids for ids in encodings if ids]

    def piece(self, id: int) -> Piece:
        """The bytes of a single token. Empty for an id without a token: a model's vocabulary may be larger than its tokenizer's."""
        return self._pieces[id]

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it, such as `Ġking`."""
        return [str(token) for token in self.base.convert_ids_to_tokens(list(ids))]

    def decode_with_special_tokens(self, ids: Sequence[int]) -> str:
        """The text, with the names of all special tokens."""
        return str(self.base.backend_tokenizer.decode(list(ids), skip_special_tokens=False))

    def __len__(self) -> int:
        return len(self.base)


def check_unicode(text: str, param: str) -> None:
    """Raises `InvalidRequest` for a lone surrogate: JSON can escape one, but it is not a character and cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{param}: character {error.start} is a lone surrogate, not valid Unicode", param=param) from error
