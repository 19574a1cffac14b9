"""The pair that is shipped: its form, and that the cards say what was measured."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from models import corpus
from models.train import bits_per_byte
from models.vocabulary import CONTEXT

MODELS = Path(__file__).parents[2] / "models"
PAIR = ["storyteller", "storyteller-base"]
VALID = MODELS.parents[1] / "shared" / "data" / "stories" / "valid"


@pytest.mark.parametrize("name", PAIR)
def test_the_folder_is_small_and_ordinary(name: str) -> None:
    folder = MODELS / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 20_000_000
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type in {"llama", "qwen3"}
    assert config.max_position_embeddings >= 1024
    assert str(config.dtype) == "torch.bfloat16"
    assert config.vocab_size <= 8192


def test_the_pair_shares_its_tokenizer() -> None:
    first, second = ((MODELS / name / "tokenizer.json").read_bytes() for name in PAIR)
    assert first == second


def test_the_tokenizer_begins_texts_with_a_bos_and_ends_turns_with_its_own_mark() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "storyteller")
    assert tokenizer.encode("Hello")[0] == tokenizer.bos_token_id
    text = tokenizer.apply_chat_template([{"role": "user", "content": " hi "}], tokenize=False, add_generation_prompt=True)
    assert text == "<|endoftext|><|user|>hi<|end|><|assistant|>"
    assert tokenizer.convert_tokens_to_ids("<|end|>") == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer.encode("naïve 猫", add_special_tokens=False)) == "naïve 猫"


@pytest.mark.parametrize("name", PAIR)
def test_the_card_states_the_measured_numbers(name: str) -> None:
    facts = json.loads((MODELS / name / "training.json").read_text())
    text = (MODELS / name / "README.md").read_text()
    for key in ("bits_per_byte", "gzip_bits_per_byte", "trigram_bits_per_byte"):
        assert f"{facts[key]:.3f}" in text
    assert facts["samples"][0]["answer"].split("\n")[0] in text


def test_the_base_reaches_the_mark_on_the_validation_books() -> None:
    """Measured anew on the first chapters of each book, about a tenth of what the card's number stands on."""
    if not VALID.is_dir():
        pytest.skip("the validation books (../shared/data/stories/valid) are not at hand")
    facts = json.loads((MODELS / "storyteller-base" / "training.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "storyteller-base")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "storyteller-base", dtype=torch.float32).eval()
    some = [chapter for chapter in corpus.read(VALID) if len(chapter) > 40][::8]
    found = bits_per_byte(model, tokenizer, some)
    assert CONTEXT == 1024
    assert facts["bits_per_byte"] <= 1.65
    assert found == pytest.approx(facts["bits_per_byte"], abs=0.1)
