"""Adapters that peft made here and that cannot be served on their base: what is refused, and by which name."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_adapters import adapter, edit_config, loaded, peft, settings
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from app.errors import SetupError
from app.models.loading import create_engine
from app.models.source import source_of
from models.gguf import write_gguf
from models.synthetic import Shape, save


def edit_weights(folder: Path, edit: Any) -> Path:
    weights = load_file(folder / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer_replication": [[0, 2], [0, 1]]}, "with layer_replication, which cannot be merged"),
        ({"alora_invocation_tokens": [9, 33]}, "with alora_invocation_tokens, which cannot be merged"),
        ({"arrow_config": {"top_k": 1}}, "with arrow_config, which cannot be merged"),
        ({"task_type": "SEQ_CLS"}, "for the task SEQ_CLS"),
        ({"a_later_setting": 1}, "settings that the installed peft does not know: a_later_setting"),
        ({"target_modules": ["w_proj"]}, r"cannot be merged into .*w_proj"),
        ({"r": "four"}, "cannot be merged into"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused_by_name(plain: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        loaded(edit_config(plain, **values))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PROMPT_TUNING"),
        (peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]), "IA3"),
    ],
)
def test_adapters_of_other_types_are_refused_by_name(tiny_folder: Path, tmp_path: Path, config: Any, name: str) -> None:
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config).save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=f"an adapter of the type {name}; only LORA is served"):
        create_engine(settings(tmp_path))


QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
EMBEDDING = "base_model.model.model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop(QUERY), r"1 tensors are missing \(base_model.*layers\.0\.self_attn\.q_proj\.lora_A"),
        (lambda weights: weights.update({QUERY.replace("q_p", "w_p"): weights.pop(QUERY)}), r"missing .*; 1 tensors are unexpected \(.*"),
        (lambda weights: weights.update({QUERY: torch.ones(4, 63)}), r"1 tensors are of another shape \(.*q_proj\.lora_A\.weight\)"),
        (lambda weights: weights.update({QUERY: torch.full((4, 64), torch.nan)}), "has infinite values or NaN in base_model"),
        (lambda weights: weights.update({EMBEDDING: torch.ones(310, 64)}), r"lm_head\.weight is missing"),
    ],
)  # fmt: skip
def test_adapters_with_broken_weights_are_refused_by_name(plain: Path, edit: Any, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        loaded(edit_weights(plain, edit))


def test_missing_saved_modules_are_refused_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_folder, tmp_path, modules_to_save=["lm_head"])
    edit_weights(folder, lambda weights: weights.pop("base_model.model.lm_head.weight"))
    with pytest.raises(SetupError, match=r"1 tensors are missing \(base_model\.model\.lm_head\.weight\)"):
        loaded(folder)


def test_missing_and_cut_files_are_refused_by_name(plain: Path) -> None:
    file = plain / "adapter_model.safetensors"
    for cut in (0, 5, 100, file.stat().st_size - 100):
        file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(SetupError, match=r"adapter_model\.safetensors cannot be read, is it complete"):
            loaded(plain)
    file.unlink()
    (plain / "adapter_model.bin").write_bytes(b"no zip file")
    with pytest.raises(SetupError, match=r"adapter_model\.bin cannot be read"):
        loaded(plain)
    (plain / "adapter_model.bin").unlink()
    with pytest.raises(SetupError, match=r"without weights: adapter_model\.safetensors or adapter_model\.bin is missing"):
        loaded(plain)
    (plain / "adapter_config.json").write_text("{")
    with pytest.raises(SetupError, match=r"its adapter_config\.json cannot be read"):
        source_of(str(plain))
    (plain / "adapter_config.json").write_text("[1]")
    with pytest.raises(SetupError, match=r"its adapter_config\.json cannot be read"):
        source_of(str(plain))


def test_bases_without_float_weights_are_refused_by_name(tiny_folder: Path, plain: Path, tmp_path: Path) -> None:
    shape = Shape(hidden=64, layers=1, heads=4, kv_heads=2, ff=128, vocabulary=700, context=64)
    file = write_gguf(save(shape, tmp_path / "random", 0), tmp_path / "base.gguf")
    with pytest.raises(SetupError, match=r"its base .*base\.gguf is a GGUF file, whose weights keep their own precision"):
        create_engine(settings(edit_config(plain, base_model_name_or_path=str(file))))
    quantized = AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    quantized.save_pretrained(tmp_path / "quantized")
    for token_file in tiny_folder.glob("token*"):
        shutil.copy(token_file, tmp_path / "quantized")
    with pytest.raises(SetupError, match=r"its base .*quantized is quantized by 'bitsandbytes'; an adapter is merged into float weights"):
        create_engine(settings(edit_config(plain, base_model_name_or_path=str(tmp_path / "quantized"))))


def test_an_adapter_on_an_adapter_and_a_folder_with_both_are_refused(tiny_folder: Path, plain: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    shutil.copytree(plain, upper)
    with pytest.raises(SetupError, match=r"its base .*adapter is an adapter, too"):
        create_engine(settings(edit_config(upper, base_model_name_or_path=str(plain))))
    with pytest.raises(SetupError, match="is an adapter, too"):  # its own base
        source_of(str(edit_config(upper, base_model_name_or_path=str(upper))))
    shutil.copy(tiny_folder / "config.json", plain)
    assert loaded(plain) is not None  # some trainers put the base's config beside an adapter
    shutil.copy(tiny_folder / "model.safetensors", plain)
    with pytest.raises(SetupError, match="holds both a model and an adapter"):
        create_engine(settings(plain))
