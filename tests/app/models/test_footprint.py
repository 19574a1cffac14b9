"""The bytes of weights, told from the config alone, against what the engine declares once it has loaded and packed them."""

from pathlib import Path

import pytest
import torch
from gguf_families import FAMILIES, VOCABULARY, create_model, write_family
from tinymodels import CONTEXT, tiny
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from app.engine import linear
from app.engine.capacity import CacheLimits, cache_bytes
from app.engine.conversion import create_flat_model
from app.engine.flat import FlatModel
from app.errors import UnsupportedModel
from app.models.cache import slot_attention
from app.models.footprint import Form, footprint
from app.models.skeleton import served_dtype, skeleton_of
from app.models.source import source_of
from app.models.weights import load_model, rounds_itself
from app.settings import ModelSettings
from models.gguf import write_gguf
from models.synthetic import Shape, save

CPU = torch.device("cpu")
FORMS = [
    ("none", "auto"),
    ("none", "bfloat16"),
    ("int8", "auto"),
    ("int4", "auto"),
    ("nf4", "auto"),
    ("nf4", "float32"),
    ("int8", "float32"),
]


def loaded(path: Path, quantize: str, dtype: str) -> FlatModel:
    settings = ModelSettings(path=str(path), quantize=quantize, dtype=dtype, device="cpu")  # type: ignore[arg-type]
    model = load_model(source_of(str(path)), settings, CPU)
    return create_flat_model(model, CacheLimits(2, CONTEXT), quantize if rounds_itself(settings, CPU) else "none")


def told(path: Path, quantize: str, dtype: str) -> tuple[int, torch.dtype]:
    source = source_of(str(path))
    skeleton = skeleton_of(source)
    served = served_dtype(source, dtype, quantize, "cpu", skeleton.num_parameters())
    compiled = linear.kernel()
    return footprint(source, skeleton, Form(quantize, served, "cpu", compiled and compiled.columns)).total(), served


@pytest.mark.parametrize(("quantize", "dtype"), FORMS)
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_weights_take_what_was_told(tmp_path: Path, name: str, quantize: str, dtype: str) -> None:
    check(tmp_path, name, quantize, dtype)


@pytest.mark.parametrize("name", ["Qwen3", "GPTNeoX"])
def test_so_do_those_of_other_families(tmp_path: Path, name: str) -> None:
    check(tmp_path, name, "int4", "auto")


@pytest.mark.parametrize(("quantize", "dtype"), [("int8", "auto"), ("int4", "auto"), ("int8", "float32"), ("none", "auto")])
def test_so_does_a_scaled_embedding_beside_its_projection(tmp_path: Path, quantize: str, dtype: str) -> None:
    check(tmp_path, "Gemma2", quantize, dtype)


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_so_do_those_without_the_compiled_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: str) -> None:
    monkeypatch.setattr("app.engine.linear.kernel", lambda: None)
    check(tmp_path, "Llama", quantize, "bfloat16")


def check(folder: Path, name: str, quantize: str, dtype: str) -> None:
    tiny(name).save_pretrained(folder)
    flat, (size, served) = loaded(folder, quantize, dtype), told(folder, quantize, dtype)
    assert served == flat.model.dtype
    assert flat.weights.bytes == pytest.approx(size, rel=0.025)  # the kernel keeps biases apart


@pytest.mark.parametrize("type_name", ["Q3_K", "Q4_0", "IQ4_NL", "Q8_0", "F16"])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_gguf_files_weights_take_what_its_header_tells(tmp_path: Path, type_name: str, dtype: str) -> None:
    shape = Shape(hidden=256, layers=2, heads=4, kv_heads=2, ff=256, vocabulary=700, context=CONTEXT)
    file = write_gguf(save(shape, tmp_path / "model", 0), tmp_path / "model.gguf", type_name, {"token_embd": "Q8_0"})
    flat, (size, served) = loaded(file, "none", dtype), told(file, "none", dtype)
    assert served == flat.model.dtype
    assert flat.weights.bytes == pytest.approx(size, rel=0.002)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(hidden=64, layers=1, heads=2, kv_heads=2, ff=64, vocabulary=VOCABULARY, context=64)
    return save(shape, tmp_path_factory.mktemp("tokenizer"), 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_so_do_gguf_files_of_all_architectures(tmp_path: Path, tokenizer: Path, name: str) -> None:
    file = write_family(FAMILIES[name], create_model(FAMILIES[name]), tokenizer, tmp_path / "model.gguf", "Q8_0")
    assert loaded(file, "none", "auto").weights.bytes == pytest.approx(told(file, "none", "auto")[0], rel=0.03)


@pytest.mark.parametrize("width", [64, 96])
def test_experts_that_bitsandbytes_leaves_are_counted_as_they_are(tmp_path: Path, width: int) -> None:
    """It divides rows into blocks of 64, and of a checkpoint that it saved transformers left all experts."""
    config = FAMILIES["qwen3moe"].config()
    config.moe_intermediate_size = width
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "plain")
    rounding = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    options = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}, "quantization_config": rounding}
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain", **options).save_pretrained(tmp_path / "saved")
    for path, quantize in ((tmp_path / "plain", "nf4"), (tmp_path / "saved", "none")):
        assert loaded(path, quantize, "auto").weights.bytes == pytest.approx(told(path, quantize, "auto")[0], rel=0.03)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT2", "GPTNeoX", "OPT", "Phi", "Mistral"])
def test_a_slot_takes_what_was_told(tmp_path: Path, name: str) -> None:
    tiny(name).save_pretrained(tmp_path)
    flat = loaded(tmp_path, "none", "auto")
    assert cache_bytes(slot_attention(skeleton_of(source_of(str(tmp_path)))).shapes.values(), CONTEXT, torch.float32) == cache_bytes(
        flat.attention.shapes.values(), CONTEXT, torch.float32
    )


@pytest.mark.parametrize("name", ["Falcon"])
def test_what_the_engine_refuses_is_refused_without_weights(tmp_path: Path, name: str) -> None:
    tiny(name).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="cannot be served"):
        slot_attention(skeleton_of(source_of(str(tmp_path))))


def test_without_a_dtype_in_the_config_the_header_of_the_weights_tells_it(tmp_path: Path) -> None:
    tiny("Llama").half().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"dtype": "float16",', ""))
    source = source_of(str(tmp_path))
    assert served_dtype(source, "auto", "none", "cuda", 1) == torch.float16
    assert served_dtype(source, "auto", "none", "cpu", 1) == torch.float32  # a small model
    assert served_dtype(source, "auto", "int8", "cpu", 1) == torch.bfloat16
