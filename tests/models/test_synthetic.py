"""A model of a chosen shape: loads, reads and writes text, and never ends by itself."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.models.gguf import GGUFFile
from models import synthetic

TINY = synthetic.Shape(hidden=32, layers=1, heads=4, kv_heads=2, ff=48, vocabulary=700, context=256)
OPTIONS = ["--hidden", "32", "--layers", "1", "--heads", "4", "--kv-heads", "2", "--ff", "48", "--vocabulary", "700", "--context", "256"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.save(TINY, tmp_path_factory.mktemp("shape"), 0)


def test_tokenizer_round_trip(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Once upon a time  there was a Fuchs für 日本.\n\tThe end\x00"
    assert len(tokenizer) == 700
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("and the king").input_ids) < len("and the king")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "user: Hi\nassistant: "


def test_the_vocabulary_of_the_default_shape():
    tokenizer = synthetic.create_tokenizer(synthetic.Shape().vocabulary)
    assert len(tokenizer) == 49152
    assert tokenizer("\n the king").tokens() == ["Ċ", "Ġt", "he", "Ġk", "ing"]


@pytest.mark.parametrize("size", [100, 10**7])
def test_an_impossible_vocabulary_size(size):
    with pytest.raises(ValueError, match=f"a vocabulary of {size} entries cannot be made"):
        synthetic.create_tokenizer(size)


def test_an_answer_is_printable_and_never_ends(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.num_key_value_heads == 2 and model.dtype == torch.bfloat16
    out = model.generate(**tokenizer("The king", return_tensors="pt"), do_sample=False, max_new_tokens=100)
    assert out.shape[1] == tokenizer("The king", return_tensors="pt").input_ids.shape[1] + 100
    assert all(tokenizer.decode([token]).isascii() for token in out[0])
    silent = model.get_input_embeddings().weight.abs().sum(-1) == 0
    assert silent.sum() == len(synthetic.SPECIAL_TOKENS) + 256 - 95 and silent[:2].all()


def test_the_same_seed_gives_the_same_weights(folder, tmp_path):
    again = synthetic.save(TINY, tmp_path / "again", 0)
    other = synthetic.save(TINY, tmp_path / "other", 1)
    weights = [Path(path, "model.safetensors").read_bytes() for path in (folder, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_an_impossible_shape(tmp_path, capsys):
    assert synthetic.main(["--out", str(tmp_path), "--hidden", "30", "--heads", "4"]) == 2
    assert "do not divide" in capsys.readouterr().err


def test_a_gguf_file_beside_the_folder(tmp_path):
    assert synthetic.main(["--out", str(tmp_path / "tiny"), "--gguf", *OPTIONS]) == 0
    file = GGUFFile(tmp_path / "tiny-f16.gguf")
    assert {tensor.type for tensor in file.tensors.values()} == {"F32", "F16"}
    assert (file.architecture, file.metadata["llama.context_length"], len(file.metadata["tokenizer.ggml.tokens"])) == ("llama", 256, 700)
