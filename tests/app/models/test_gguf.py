"""GGUF files: every simple type gives the logits of its dequantized weights; what cannot be served is refused by name."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import gguf
import numpy as np
import pytest
import torch
from driving import drain
from transformers import AutoModelForCausalLM

from app.engine.events import Delta, Scored
from app.engine.grouped import dequantize_layers
from app.engine.request import Generate, SamplingParams, Score, Window
from app.errors import SetupError, UnsupportedModel
from app.models.gguf import GGUFFile, parts_of
from app.models.gguf_weights import load_gguf
from app.models.loading import create_engine
from app.models.source import source_of
from app.models.vocabulary import create_tokenizer, end_tokens
from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from models.gguf import write_gguf
from models.synthetic import Shape, save

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
IDS = torch.tensor([[5, 17, 9, 200, 31, 44, 90, 12]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in transformers' format whose tokenizer has merges."""
    shape = Shape(hidden=64, layers=2, heads=4, kv_heads=2, ff=128, vocabulary=700, context=256)
    return save(shape, tmp_path_factory.mktemp("folder"), 0)


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target = tmp_path_factory.mktemp("gguf")
    return {name: write_gguf(folder, target / f"tiny-{name}.gguf", name) for name in TYPES}


@pytest.mark.parametrize("name", TYPES)
def test_logits_are_those_of_the_files_own_weights(files: dict[str, Path], folder: Path, name: str) -> None:
    model = load_gguf(GGUFFile(files[name]), torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 2:
                kind = gguf.GGMLQuantizationType[name]
                stored = gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(stored)).view_as(parameter))
        expected, logits = reference(IDS).logits, model(IDS).logits
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        dequantize_layers(model)
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["F16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_file_chats_and_scores(files: dict[str, Path], name: str, dtype: str) -> None:
    engine, facts = create_engine(ModelSettings(path=str(files[name]), slots=2, dtype=dtype))
    assert facts.name == f"tiny-{name}" and facts.chat and facts.dtype == ("bfloat16" if dtype == "auto" else "float32")
    engine.submit(Generate("chat", tuple(IDS[0].tolist()), 8, SamplingParams(temperature=0.0), ignore_eos=True))
    engine.submit(Score("text", tuple(IDS[0].tolist()), (Window(0, 8, 1),)))
    events = drain(engine)
    assert sum(len(event.tokens) for event in events if isinstance(event, Delta)) == 8
    (scored,) = [event for event in events if isinstance(event, Scored)]
    assert len(scored.columns.logprob) == 7 and all(isinstance(rank, int) for rank in scored.columns.rank)


def test_greedy_in_float32_is_generate(files: dict[str, Path]) -> None:
    engine, _ = create_engine(ModelSettings(path=str(files["Q8_0"]), slots=2, dtype="float32"))
    model = load_gguf(GGUFFile(files["Q8_0"]), torch.float32)
    expected = model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 8:]
    engine.submit(Generate("a", tuple(IDS[0].tolist()), 12, SamplingParams(temperature=0.0), ignore_eos=True, logprobs=0))
    tokens = [row.token for event in drain(engine) if isinstance(event, Delta) for row in event.logprobs]
    assert tokens == expected.tolist()


def test_tokens_template_and_ends_are_those_of_the_folder(files: dict[str, Path], folder: Path) -> None:
    ours, theirs = Tokenizer(str(files["Q4_0"])), Tokenizer(str(folder))
    for text in ("Hello, world  12345\n\tx = 1", "naïve 𝄞"):
        assert ours.encode(text, "prompt", False) == theirs.encode(text, "prompt", False)
    messages = [{"role": "user", "content": "hi"}]
    assert ours.encode_chat(messages) == theirs.encode_chat(messages)
    assert ours.end_tokens() == theirs.end_tokens() == frozenset(end_tokens(GGUFFile(files["Q4_0"])))


def test_a_folder_with_one_file_is_that_file_and_with_two_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(files["Q4_0"], tmp_path / "a.gguf")
    found = source_of(str(tmp_path)).gguf
    assert found is not None and found.path == tmp_path / "a.gguf"
    shutil.copy(files["Q4_0"], tmp_path / "b.gguf")
    with pytest.raises(SetupError, match=r"several GGUF models \(a\.gguf, b\.gguf\); name one"):
        source_of(str(tmp_path))


def rewritten(source: Path, target: Path, edit) -> Path:
    """A copy of a GGUF file; `edit(name, values)` gives each tensor's new name and values, or None to leave it out."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(str(target), "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        kept = edit(tensor.name, tensor.data)
        if kept is not None:
            writer.add_tensor(kept[0], kept[1], raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda name, data: None if "blk.1.ffn_up" in name else (name, data), r"1 tensors are missing \(blk\.1\.ffn_up\.weight\)"),
        (
            lambda name, data: (name.replace("attn_k", "attn_kk"), data),
            r"2 tensors are missing \(blk\.0\.attn_k\.weight.*2 tensors are unexpected \(blk\.0\.attn_kk\.weight",
        ),
        (
            lambda name, data: (name, data[:32] if name == "blk.0.ffn_gate.weight" else data),
            r"tensor blk\.0\.ffn_gate\.weight is \[32, 64\]",
        ),
    ],
)
def test_incomplete_files_are_refused_by_name(files: dict[str, Path], tmp_path: Path, edit, message: str) -> None:
    path = rewritten(files["Q4_0"], tmp_path / "broken.gguf", edit)
    with pytest.raises(SetupError, match=message):
        load_gguf(GGUFFile(path), torch.float32)


def test_files_that_are_no_gguf_or_cut_short_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    with pytest.raises(SetupError, match=r"text\.gguf is not a GGUF file that can be read"):
        GGUFFile(text)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["Q8_0"].read_bytes()[:-100_000])
    with pytest.raises(SetupError, match=r"cut\.gguf is not a GGUF file that can be read: it is cut short: tensor .* ends at byte"):
        GGUFFile(cut)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "mamba", "architecture 'mamba' are not read"),
        ("llama.block_count", 3, r"llama\.block_count is 3, its tensors are those of 2 layers"),
        ("llama.feed_forward_length", 2**31, r"llama\.feed_forward_length is 2147483648, not a number from 1 to 700"),
        ("llama.attention.head_count", 0, r"llama\.attention\.head_count is 0, not a number from 1"),
        ("llama.attention.head_count_kv", [2, 1], r"llama\.attention\.head_count_kv is \[2, 1\], not a number"),
        ("llama.attention.head_count", 3, "it rotates 16 of the 21 values of a head"),
        ("llama.context_length", 0.5, "make no llama model: .*max_position_embeddings"),
        ("llama.rope.scaling.type", "martian", "rope scaling 'martian' is not supported"),
    ],
)
def test_metadata_that_make_no_model_are_refused_by_name(files: dict[str, Path], key: str, value: object, message: str) -> None:
    file = GGUFFile(files["Q4_0"])
    file.metadata[key] = value
    with pytest.raises(SetupError, match=message):
        load_gguf(file, torch.float32)


def test_a_file_without_an_embedding_is_refused_by_name(files: dict[str, Path]) -> None:
    file = GGUFFile(files["Q4_0"])
    del file.tensors["token_embd.weight"]
    with pytest.raises(SetupError, match=r"it has no tensor token_embd\.weight"):
        load_gguf(file, torch.float32)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.pre", "martian", "pre-tokenizer 'martian' is not known"),
        ("tokenizer.ggml.model", "rwkv", r"no tokenizer could be made of it: .*'rwkv'"),
        ("tokenizer.ggml.tokens", None, r"it has no vocabulary \(tokenizer\.ggml\.tokens\)"),
        ("tokenizer.ggml.eos_token_id", 700, r"tokenizer\.ggml\.eos_token_id is 700, no token of its 700"),
        ("tokenizer.ggml.merges", ["q zz"], "its merge 'q zz' is not one of two tokens"),
    ],
)
def test_vocabularies_that_cannot_be_read_are_refused_by_name(files: dict[str, Path], key: str, value: object, message: str) -> None:
    file = GGUFFile(files["Q4_0"])
    file.metadata[key] = value
    with pytest.raises(SetupError, match=message):
        create_tokenizer(file)


def test_a_split_file_needs_all_its_parts_and_its_first_one(tmp_path: Path) -> None:
    for number in (1, 3):
        (tmp_path / f"m-{number:05}-of-00003.gguf").write_bytes(b"")
    with pytest.raises(SetupError, match=r"missing: m-00002-of-00003\.gguf"):
        parts_of(tmp_path / "m-00001-of-00003.gguf")
    with pytest.raises(SetupError, match="give its first part"):
        parts_of(tmp_path / "m-00003-of-00003.gguf")


def test_quantizing_a_gguf_file_again_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(SetupError, match=r"model\.quantize: .* keep their own precision; use none"):
        create_engine(ModelSettings(path=str(files["Q4_0"]), quantize="int4"))


def test_an_older_transformers_that_splits_texts_otherwise_is_refused(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("transformers.integrations.gguf.gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS")
    with pytest.raises(UnsupportedModel, match=r"transformers \d.* cannot make the tokenizer of a GGUF file; install the version"):
        create_tokenizer(GGUFFile(next(iter(files.values()))))


def test_in_an_answer_with_channels_a_call_ends_it_and_a_message_does_not() -> None:
    tokens = ["<|channel|>", "<|end|>", "<|call|>", "<|return|>", "a"]
    for shown, ends in ((tokens, [2, 3]), (["b", *tokens[1:]], [1, 3])):
        metadata = {"tokenizer.ggml.tokens": shown, "tokenizer.ggml.token_type": [3, 3, 3, 3, 1], "tokenizer.ggml.eot_token_id": ends[0]}
        assert end_tokens(cast(GGUFFile, SimpleNamespace(metadata=metadata))) == ends
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eos_token_id": 3}
    assert end_tokens(cast(GGUFFile, SimpleNamespace(metadata=metadata))) == [3]
