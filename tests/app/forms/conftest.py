"""The vocabulary in which calls of all forms can be written."""

from typing import Any

import pytest
from llguidance.hf import from_tokenizer
from tokenizers import AddedToken
from tool_templates import SPECIAL, VISIBLE, Vocabulary
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def vocabulary(bundled: Any) -> Vocabulary:
    base = AutoTokenizer.from_pretrained(bundled)
    base.add_tokens([AddedToken(text, special=False, normalized=False) for text in VISIBLE])
    base.add_special_tokens({"additional_special_tokens": [AddedToken(text, special=True, normalized=False) for text in SPECIAL]})
    return Vocabulary(base, from_tokenizer(base))
