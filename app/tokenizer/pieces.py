"""The bytes of single tokens, whatever kind of vocabulary the tokenizer has."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase


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


class Pieces(dict[int, Piece]):
    """The pieces that were asked for, by the token's id. `special_tokens` are the contents of those that an answer's text leaves out."""

    def __init__(self, base: PreTrainedTokenizerBase, special_tokens: Mapping[int, str]) -> None:
        super().__init__()
        self._base = base
        self._special_tokens = special_tokens
        self._decoder_types = decoder_types(base)

    def __missing__(self, id: int) -> Piece:
        """Empty for an id without a token: a model's vocabulary may be larger than its tokenizer's."""
        piece = self[id] = self._read(id)
        return piece

    def _read(self, id: int) -> Piece:
        token = self._base.backend_tokenizer.id_to_token(id)
        if token is None or id in self._special_tokens:
            return Piece(self._special_tokens.get(id, "").encode(), b"", True)
        if "ByteLevel" in self._decoder_types:
            byte_level = all(letter in BYTE_OF_LETTER for letter in token)
            data = bytes(BYTE_OF_LETTER[letter] for letter in token) if byte_level else token.encode()
            return Piece(data, data, False)
        byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
        if byte and "ByteFallback" in self._decoder_types:
            data = bytes.fromhex(byte[1])
            return Piece(data, data, False)
        decoder = self._base.backend_tokenizer.decoder
        at_start = token if decoder is None else decoder.decode([token])
        twice = token * 2 if decoder is None else decoder.decode([token, token])
        return Piece(
            twice[len(at_start) :].encode(), at_start.encode(), False
        )  # what the second of two adds: its bytes after another token


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
