"""Tokenizers of GGUF files split a text as llama.cpp does, and treat its spaces as sentencepiece does."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import pytest
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from app.errors import SetupError
from app.models.gguf import GGUFFile
from app.models.vocabulary import SAME_AS, SPLITS, create_tokenizer
from models.gguf import write_gguf
from models.synthetic import Shape, save

TEXT = "I'LL pay 12345 €,\n\n  你好abc (x)\t\"quoted"
# With SmolLM2's vocabulary each of these gave llama-server's own tokens of 218 texts of many scripts.
PIECES = {
    "seed-coder": ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " €,", "\n\n", " ", " 你好abc", " (", "x", ")", "\t", '"quoted'],
    "deepseek-coder": [
        *("I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", " ", "€", ",", "\n", "\n", " ", " ", "你好", "abc"),
        *(" (", "x", ")", '\t"', "quoted"),
    ],
    "deepseek-v3": ["I", "'LL", " pay", " ", "123", "45", " €,\n\n", "  ", "你好", "abc", " (", "x", ")", "\t", '"quoted'],
    "glm4": ["I", "'LL", " pay", " ", "123", "45", " €,\n\n", " ", " 你好abc", " (", "x", ")", "\t", '"quoted'],
    "stablelm2": ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " €,\n\n", " ", " 你好abc", " (", "x", ")", "\t", '"quoted'],
    "exaone4": ["I", "'", "LL", " pay", " 12345", " €,", "\n\n ", " 你好abc", " (", "x", ")", "\t", '"', "quoted"],
    "smollm": [
        *("I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", " €,", "\n\n ", " 你好abc", " (", "x", ")", "\t", '"', "quoted"),
    ],
}
# Outside the letters that stand for bytes, and their kinds: 3 special, 4 defined by the model's maker.
OWN_TOKENS = {"<｜begin▁of▁sentence｜>": 3, "<｜end▁of▁sentence｜>": 3, "<｜User｜>": 3, "a b": 4, "  ": 4}
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁▁"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    """With a byte-level vocabulary."""
    folder = tmp_path_factory.mktemp("vocabulary")
    save(Shape(hidden=64, layers=1, heads=2, kv_heads=2, ff=64, vocabulary=700, context=64), folder / "model", 0)
    return GGUFFile(write_gguf(folder / "model", folder / "model.gguf"))


@pytest.mark.parametrize("name", PIECES)
def test_a_text_is_split_as_by_llama_cpp(file: GGUFFile, name: str) -> None:
    file.metadata["tokenizer.ggml.pre"] = name
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    splitter = create_tokenizer(file).backend_tokenizer.pre_tokenizer
    assert [bytes(byte_of[letter] for letter in piece).decode() for piece, _ in splitter.pre_tokenize_str(TEXT)] == PIECES[name]


@pytest.mark.parametrize("name", sorted(SAME_AS.keys() | SPLITS.keys()))
def test_every_split_keeps_the_text(file: GGUFFile, name: str) -> None:
    file.metadata["tokenizer.ggml.pre"] = name
    tokenizer = create_tokenizer(file)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def byte_level(path: Path, splitter: str, words: Mapping[str, int], merges: Sequence[str] = (), **ids: int) -> GGUFFile:
    """Its vocabulary: the bytes' letters, and then `words` with their kinds. `ids`: of the first and last token of a text."""
    letters = list(bytes_to_unicode().values())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list([*letters, *words])
    writer.add_token_types([*[1] * len(letters), *words.values()])
    writer.add_token_merges(list(merges))
    for name, id in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path)


@pytest.mark.parametrize("splitter", ["deepseek-r1-qwen", "deepseek-v3", "default"])
def test_tokens_outside_the_letters_of_bytes_keep_their_ids(tmp_path: Path, splitter: str) -> None:
    file = byte_level(tmp_path / "r1.gguf", splitter, {"ĠĠ": 1} | OWN_TOKENS, ["Ġ Ġ"], bos=257, eos=258)
    file.metadata["tokenizer.ggml.token_type"].append(3)  # of no token
    tokenizer = create_tokenizer(file)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (257, 258, 262)
    assert {token.content: token.special for token in tokenizer.added_tokens_decoder.values()} == {
        token: kind == 3 for token, kind in OWN_TOKENS.items()
    }
    text = "<｜begin▁of▁sentence｜><｜User｜>a b  a<｜end▁of▁sentence｜>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == [257, 259, 260, 261, tokenizer.convert_tokens_to_ids("a"), 258]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("splitter", "bos", "whole"),
    [("llama-bpe", True, True), ("lfm2", True, True), ("tekken", True, True), ("glm4", False, True), ("dbrx", False, False)],
)
def test_words_without_merges_and_the_first_token_are_those_of_llama_cpp(tmp_path: Path, splitter: str, bos: bool, whole: bool) -> None:
    file = byte_level(tmp_path / "words.gguf", splitter, {"<s>": 3, "ab": 1, "Ġcab": 1}, ["a b"], bos=256)
    tokens = [*["<s>"] * bos, *(["Ġcab"] if whole else ["Ġ", "c", "ab"]), "Ġ", "b"]
    tokenizer = create_tokenizer(file)
    assert tokenizer.convert_ids_to_tokens(tokenizer(" cab b")["input_ids"]) == tokens
    file.metadata["tokenizer.ggml.add_bos_token"] = not bos
    assert (create_tokenizer(file)("b")["input_ids"][0] == 256) is not bos


def test_a_token_beyond_the_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    file = byte_level(tmp_path / "empty.gguf", "default", {"<s>": 3})
    file.metadata["tokenizer.ggml.model"] = "llama"  # whose tokens Gemma's tokenizer respells
    file.metadata["general.architecture"] = "gemma"
    file.metadata["tokenizer.ggml.tokens"][255:] = ["  ", "<s>"]
    file.metadata["tokenizer.ggml.padding_token_id"] = 255
    with pytest.raises(SetupError, match=r"empty\.gguf: its tokenizer would give '  ' the id 257, beyond its 257 tokens"):
        create_tokenizer(file)


def sentencepiece(
    path: Path, prefix: bool | None, architecture: str = "llama", name: str = "", special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Its merges follow from the scores. `prefix`: what the file says of a space before a text."""
    words = [*WORDS, *special]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(name)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(id) for id in range(len(words))])
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1, *[3] * len(special)])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_unk_token_id(0)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return create_tokenizer(GGUFFile(path))


@pytest.mark.parametrize(
    ("prefix", "text", "tokens"),
    [
        (None, "a b", ["▁a", "▁", "b"]),
        (True, "a b", ["▁a", "▁", "b"]),
        (True, " a", ["▁", "▁a"]),  # transformers leaves out one of the two spaces
        (True, "  ", ["▁▁", "▁"]),
        (True, "a</s>b", ["▁a", "</s>", "▁", "b"]),
        (False, "a b", ["a", "▁", "b"]),  # and puts one before the text here
        (False, " a", ["▁a"]),
        (False, "a</s>b", ["a", "</s>", "b"]),
        (None, "é", ["▁", "<0xC3>", "<0xA9>"]),
    ],
)
def test_spaces_are_those_of_sentencepiece(tmp_path: Path, prefix: bool | None, text: str, tokens: list[str]) -> None:
    tokenizer = sentencepiece(tmp_path / "pieces.gguf", prefix)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids) == text or "</s>" in text


@pytest.mark.parametrize(
    ("architecture", "name", "stripped"),
    [("phi3", "Phi 3.5 mini", True), ("phi3", "", True), ("llama", "Phi-3-mini", True), ("llama", "other", False)],
)
def test_special_tokens_of_phi_3_take_in_the_spaces_that_follow(tmp_path: Path, architecture: str, name: str, stripped: bool) -> None:
    tokenizer = sentencepiece(tmp_path / "phi.gguf", None, architecture, name, ["<|endoftext|>", "<|user|>", "<|end|>"])
    ids = tokenizer("<|user|>\na<|end|>\n</s> <s>\n<|endoftext|>\n", add_special_tokens=False)["input_ids"]
    line, space = ["▁", "<0x0A>"], ["▁▁"]
    assert tokenizer.convert_ids_to_tokens(ids) == (
        ["<|user|>", "▁a", "<|end|>", "</s>", "<s>", *line, "<|endoftext|>", *line]
        if stripped
        else ["<|user|>", *line, "a", "<|end|>", *line, "</s>", *space, "<s>", *line, "<|endoftext|>", *line]
    )
