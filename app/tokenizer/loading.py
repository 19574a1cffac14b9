"""Reads a tokenizer and what stands beside it: the chat template, and how answers are to be sampled and ended."""

import json
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from app.errors import SetupError, first_line
from app.models.source import Source, source_of

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
CHAT_TEMPLATE_FILE = "chat_template.jinja"


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer and its chat template; of an adapter its own, each of them, or else its base's. Raises `SetupError`."""
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
    except Exception as error:  # what transformers and tokenizers come upon in a file of another form; some are no more exact
        files, reason = " or ".join(TOKENIZER_FILES), f"{type(error).__name__}: {first_line(error)}"
        raise SetupError(f"{source.path}: its {files} has not the form of one ({reason})") from error
    template = source.adapter.file(CHAT_TEMPLATE_FILE)
    if template is not None:
        try:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise SetupError(f"{template} is not text in UTF-8") from error
    tokenizer.chat_template = tokenizer.chat_template or base.chat_template
    return tokenizer


def read_generation_config(path: str) -> dict[str, Any]:
    """The model's generation_config.json as it is written; empty if there is none. Raises `SetupError` if it is not a JSON object."""
    file = source_of(path).file("generation_config.json")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file else {}
    except (ValueError, TypeError) as error:
        raise SetupError(f"{path}: its generation_config.json is not a JSON object: {first_line(error)}") from error
