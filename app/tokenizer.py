"""Text to token ids and back, the chat template, and what the model's folder says about end tokens and sampling. Knows no weights.

The API process uses it to refuse requests that cannot be served before they are queued; the worker uses it to detokenize.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from app.errors import InvalidRequest, SetupError, first_line
from app.forms.reasoning import ReasoningFormat, learn_reasoning
from app.forms.tools import AddedTokens, ToolFormat, ToolsUnsupported
from app.forms.ways import ToolRendering, learn_tools
from app.models.source import Source, source_of
from app.models.vocabulary import create_tokenizer, generation_values

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
CHAT_TEMPLATE_FILE = "chat_template.jinja"


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


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of a single token. They may differ at the start of a text: SentencePiece tokenizers drop a leading space there."""

    data: bytes  # after other tokens
    data_at_start: bytes  # as the first token of a text
    special: bool  # left out of the text of an answer

    @property
    def text(self) -> str:
        """The text as OpenAI writes it; bytes that are not valid UTF-8 become `bytes:\\xe7\\x8c`."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.data)


class Tokenizer:
    """Raises `SetupError` when `path` (folder, hub name or GGUF file) holds no fast tokenizer."""

    def __init__(self, path: str) -> None:
        source = source_of(path)
        file = source.gguf
        self.base: PreTrainedTokenizerBase = _load(source) if file is None else create_tokenizer(file)
        if not self.base.is_fast:
            raise SetupError(f"{path}: its tokenizer has no tokenizer.json; Litmus needs one for character offsets")
        self.generation_config = read_generation_config(path) if file is None else generation_values(file)
        self.has_chat_template = bool(self.base.chat_template)
        self._pieces: dict[int, Piece] = {}
        self._special_tokens = {id: token.content for id, token in self.base.added_tokens_decoder.items() if token.special}
        self._decoder_types = decoder_types(self.base)
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
        return self.encode_rendered(self.render_chat(messages, None, add_generation_prompt), add_special_tokens)

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The conversation as text, by the chat template; tools in the general form where the template has no place for them.

        `variables` are further ones of the template, such as `enable_thinking`. Raises `InvalidRequest` if the template is missing or
        refuses the messages.
        """
        has_tools = bool(tools) or any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
        render = self._learned_tools.render if has_tools else self._render
        return render(messages, tools, add_generation_prompt, variables)

    def render_continued(self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """The conversation up to the end of its last message, which the model is to continue. Raises `InvalidRequest`, as `render_chat`."""
        content = str(messages[-1]["content"])
        text = self.render_chat(messages, None, False, variables)
        start = text.rfind(content.strip())
        if start < 0:
            raise InvalidRequest(
                "the model's chat template changes the content of the last message, so it cannot be continued", param="messages"
            )
        kept = content if text.startswith(content, start) else content.strip()
        return text[: start + len(kept)]

    def _render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        if not self.has_chat_template:
            raise InvalidRequest("this model has no chat template: use /v1/completions", param="messages")
        tool_list: Any = None if tools is None else list(tools)
        try:
            return str(
                self.base.apply_chat_template(
                    list(messages), tools=tool_list, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
                )
            )
        except RecursionError as error:
            raise InvalidRequest("the messages are nested too deep for the model's chat template", param="messages") from error
        except (TemplateError, TypeError, KeyError) as error:  # TypeError, KeyError: an expression in the template got an unexpected value
            raise InvalidRequest(f"the model's chat template refuses these messages: {first_line(error)}", param="messages") from error

    def encode_rendered(self, text: str, add_special_tokens: bool = False) -> tuple[int, ...]:
        """Ids of a text from `render_chat`. The names of special tokens in it become those tokens."""
        with self._lock:
            return tuple(self.base.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=False))

    @cached_property
    def reasoning(self) -> ReasoningFormat | None:
        """How the model marks its thoughts, by its chat template; None for a model that does not think first."""
        return learn_reasoning(self._template_text)

    @property
    def closing_marks(self) -> list[str]:
        """What ends a thought, and parts of a tool call that no quotation mark or bracket ends."""
        thought, tools = self.reasoning, self.tool_format
        marks = ("" if thought is None else thought.close, *(tools.closing_marks if isinstance(tools, ToolFormat) else ()))
        return [mark for mark in marks if mark]

    def template_uses(self, variable: str) -> bool:
        """Whether the chat template has a place for this variable."""
        return re.search(rf"\b{re.escape(variable)}\b", self._template_text) is not None

    @property
    def _template_text(self) -> str:
        template = self.base.chat_template or ""
        return "\n".join(template.values()) if isinstance(template, dict) else template

    @property
    def tool_format(self) -> ToolFormat | ToolsUnsupported:
        """How the model writes tool calls, learned from its chat template or from the general form; or why they are not supported."""
        return self._learned_tools.format

    @property
    def tools_are_general(self) -> bool:
        """Whether tools are told, called and answered in plain messages, because the chat template does not write them all."""
        return self._learned_tools.is_general

    @cached_property
    def added_tokens(self) -> AddedTokens:
        ids = {token.content: id for id, token in self.base.added_tokens_decoder.items()}
        end_tokens = frozenset(str(token) for token in self.base.convert_ids_to_tokens(sorted(self.end_tokens())))
        tokens = AddedTokens(ids, frozenset(self._special_tokens.values()), end_tokens)
        return tokens if self.reasoning is None else tokens.shown((self.reasoning.open, self.reasoning.close))

    @cached_property
    def _hidden_tokens(self) -> frozenset[int]:
        format = self.tool_format
        hidden = self.added_tokens.special if isinstance(format, ToolsUnsupported) else format.added_tokens.special
        return frozenset(id for id, token in self._special_tokens.items() if token in hidden)

    @cached_property
    def _learned_tools(self) -> ToolRendering:
        return learn_tools(self._render, self.added_tokens)

    def encode(self, text: str, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Ids of a text. By default the tokenizer adds the special tokens the model was trained with, such as BOS.

        Raises `InvalidRequest` naming `param` if the text is not valid Unicode.
        """
        check_unicode(text, param)
        with self._lock:
            return tuple(self.base.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=False))

    def encode_with_offsets(self, text: str, param: str, split_special_tokens: bool = True) -> Encoded:
        """Ids and character offsets. By default, as for scoring, the name of a special token inside the text is tokenized as plain text."""
        check_unicode(text, param)
        with self._lock:
            encoding = self.base(text, return_offsets_mapping=True, split_special_tokens=split_special_tokens)
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
        piece = self._pieces.get(id)
        if piece is None:
            piece = self._pieces[id] = self._piece(id)
        return piece

    def _piece(self, id: int) -> Piece:
        token = self.base.backend_tokenizer.id_to_token(id)
        if token is None or id in self._hidden_tokens:
            return Piece(self._special_tokens.get(id, "").encode(), b"", True)
        if "ByteLevel" in self._decoder_types:
            byte_level = all(letter in BYTE_OF_LETTER for letter in token)
            data = bytes(BYTE_OF_LETTER[letter] for letter in token) if byte_level else token.encode()
            return Piece(data, data, False)
        byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
        if byte and "ByteFallback" in self._decoder_types:
            data = bytes.fromhex(byte[1])
            return Piece(data, data, False)
        decoder = self.base.backend_tokenizer.decoder
        at_start = token if decoder is None else decoder.decode([token])
        twice = token * 2 if decoder is None else decoder.decode([token, token])
        return Piece(
            twice[len(at_start) :].encode(), at_start.encode(), False
        )  # what the second of two adds: its bytes after another token

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it, such as `Ġking`."""
        return [str(token) for token in self.base.convert_ids_to_tokens(list(ids))]

    def decode_with_special_tokens(self, ids: Sequence[int]) -> str:
        """The text, with the names of all special tokens."""
        return str(self.base.backend_tokenizer.decode(list(ids), skip_special_tokens=False))

    def __len__(self) -> int:
        return len(self.base)


def _load(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer and its chat template; of an adapter its own, each of them, or else its base's."""
    try:
        if source.adapter is None:
            return AutoTokenizer.from_pretrained(source.base, **source.revision)
        base: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.base, **source.revision)
        tokenizer = base
        if any(source.adapter.file(name) for name in TOKENIZER_FILES):
            place, revision = source.adapter.place
            tokenizer = AutoTokenizer.from_pretrained(place, **({} if revision is None else {"revision": revision}))
    except (OSError, ValueError) as error:
        raise SetupError(f"{source.path}: no tokenizer could be loaded: {first_line(error)}") from error
    template = source.adapter.file(CHAT_TEMPLATE_FILE)
    if template is not None:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.chat_template = tokenizer.chat_template or base.chat_template
    return tokenizer


def byte_of_letter() -> dict[str, int]:
    """The byte for each letter of a byte-level (GPT-2) vocabulary: printable bytes are written as themselves, the others as the letters
    from U+0100 on.
    """
    letters = sorted(ByteLevel.alphabet())
    printable = [letter for letter in letters if ord(letter) < 256]
    others = [byte for byte in range(256) if chr(byte) not in printable]
    return {letter: ord(letter) for letter in printable} | dict(zip(letters[len(printable) :], others, strict=True))


BYTE_OF_LETTER = byte_of_letter()


def decoder_types(base: PreTrainedTokenizerBase) -> frozenset[str]:
    """Type names of the tokenizer's decoder and its parts, such as `ByteLevel` or `ByteFallback`."""
    decoder = base.backend_tokenizer.decoder
    if decoder is None:
        return frozenset()
    config = json.loads(decoder.__getstate__())
    return frozenset(part["type"] for part in [config, *config.get("decoders", [])])


def check_unicode(text: str, param: str) -> None:
    """Raises `InvalidRequest` for a lone surrogate: JSON can escape one, but it is not a character and cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{param}: character {error.start} is a lone surrogate, not valid Unicode", param=param) from error


def read_generation_config(path: str) -> dict[str, Any]:
    """The model's generation_config.json as it is written; empty if there is none. Raises `SetupError` if it is not a JSON object."""
    file = source_of(path).file("generation_config.json")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file else {}
    except (ValueError, TypeError) as error:
        raise SetupError(f"{path}: its generation_config.json is not a JSON object: {first_line(error)}") from error
