"""The bundled pair: its files and templates, and that the cards state the measured numbers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from models.train import corpus
from models.train.tokenizer import CONTEXT, TEMPLATE
from models.train.training import bits_per_byte

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


def test_the_template_in_the_folders_is_that_of_the_script() -> None:
    assert {(MODELS / name / "chat_template.jinja").read_text() for name in PAIR} == {TEMPLATE}


def test_without_tools_the_template_writes_what_the_model_was_trained_on() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "storyteller")
    messages = [{"role": role, "content": f" {role} <tool_call> "} for role in ("system", "user", "assistant", "user")]
    for tools in (None, []):
        for opened in (True, False):
            text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=opened)
            turns = "".join(f"<|{message['role']}|>{message['content'].strip()}<|end|>" for message in messages)
            assert text == f"<|endoftext|>{turns}" + "<|assistant|>" * opened


def test_the_template_writes_tools_calls_and_results() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "storyteller")
    call = {"id": "a", "type": "function", "function": {"name": "ring", "arguments": {"times": 2}}}
    messages = [
        {"role": "user", "content": "Ring."},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "a", "content": "done"},
    ]
    tools = [{"type": "function", "function": {"name": "ring"}}]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    written = '<tool_call>{"name": "ring", "arguments": {"times": 2}}</tool_call>'
    assert text == (
        '<|endoftext|><|system|>You may call functions: [{"type": "function", "function": {"name": "ring"}}]<|end|><|user|>Ring.<|end|>'
        f"<|assistant|>{written}{written}<|end|><|user|><tool_response>done</tool_response><|end|><|assistant|>"
    )


@pytest.mark.parametrize("name", PAIR)
def test_the_card_states_the_measured_numbers(name: str) -> None:
    facts = json.loads((MODELS / name / "training.json").read_text())
    text = (MODELS / name / "README.md").read_text()
    for key in ("bits_per_byte", "gzip_bits_per_byte", "trigram_bits_per_byte"):
        assert f"{facts[key]:.3f}" in text
    assert facts["samples"][0]["answer"].split("\n")[0] in text


def test_the_base_reaches_the_mark_on_the_validation_books() -> None:
    """Measures a sixtieth of the validation chapters; the card's number is that of all."""
    if not VALID.is_dir():
        pytest.skip("the validation books (../shared/data/stories/valid) are missing")
    facts = json.loads((MODELS / "storyteller-base" / "training.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "storyteller-base")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "storyteller-base", dtype=torch.float32).eval()
    some = [chapter for chapter in corpus.read(VALID) if len(chapter) > 40][::48]
    found = bits_per_byte(model, tokenizer, some)
    assert CONTEXT == 1024
    assert facts["bits_per_byte"] <= 1.65
    assert found == pytest.approx(facts["bits_per_byte"], abs=0.1)
