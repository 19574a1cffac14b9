"""Checkpoints that others rounded: their weights are what their formats say, they are served, and what is not read is refused by name."""

import json
import os
from pathlib import Path

import pytest
import torch
from driving import drain
from rounding import GPTQ, KINDS, PACKED, edit_config, save_rounded
from safetensors.torch import load_file, save_file
from tinymodels import tiny
from transformers import AutoModelForCausalLM

from app.engine.events import Delta, Scored
from app.engine.grouped import dequantize_layers
from app.engine.linear import kernel
from app.engine.request import Generate, SamplingParams, Score, Window
from app.errors import SetupError
from app.models.footprint import Form, footprint
from app.models.loading import create_engine
from app.models.prequantized import load_prequantized
from app.models.skeleton import served_dtype, skeleton_of
from app.models.source import source_of
from app.settings import ModelSettings

LAYER = "model.layers.0.mlp.down_proj"
IDS = torch.tensor([[5, 17, 9, 200, 31, 44, 90, 12]])
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_the_format_stands_for(tiny_folder: Path, tmp_path: Path, kind: str) -> None:
    folder = save_rounded(tiny_folder, tmp_path / "rounded", kind)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded-floats", dtype=torch.float32)
    model = load_prequantized(source_of(str(folder)), torch.float32, CPU)
    with torch.inference_mode():
        expected = reference(IDS).logits
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-4)
        dequantize_layers(model)
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_chats_and_scores_and_takes_what_was_told(tiny_folder: Path, tmp_path: Path, kind: str) -> None:
    folder = save_rounded(tiny_folder, tmp_path / "rounded", kind)
    engine, facts = create_engine(ModelSettings(path=str(folder), slots=2, device="cpu"))
    config, _, types = KINDS[kind]
    assert (facts.dtype, facts.quantize, facts.weights.format) == ("bfloat16", "none", config["quant_method"])
    assert facts.weights.types[0] == ("bfloat16" if types == "dequantized" else types)
    engine.submit(Generate("chat", tuple(IDS[0].tolist()), 8, SamplingParams(temperature=0.0), ignore_eos=True))
    engine.submit(Score("text", tuple(IDS[0].tolist()), (Window(0, 8, 1),)))
    events = drain(engine)
    assert sum(len(event.tokens) for event in events if isinstance(event, Delta)) == 8
    assert len(next(event for event in events if isinstance(event, Scored)).columns.logprob) == 7
    source, compiled = source_of(str(folder)), kernel()
    skeleton = skeleton_of(source)
    dtype = served_dtype(source, "auto", "none", "cpu", skeleton.num_parameters())
    told = footprint(source, skeleton, Form("none", dtype, "cpu", compiled and compiled.columns)).total()
    assert facts.weights.bytes == pytest.approx(told, rel=0.01)


def test_weights_of_several_files_are_found_and_a_tied_projection_may_be_missing(tiny_folder: Path, tmp_path: Path) -> None:
    folder = save_rounded(tiny_folder, tmp_path / "rounded", "awq")
    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop("lm_head.weight", None)
    edit_config(folder, tie_word_embeddings=True)
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"model-{number}.safetensors", {"format": "pt"})
    model = load_prequantized(source_of(str(folder)), torch.float32, CPU)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert head is None or head.shape == model.get_output_embeddings().weight.shape


def test_biases_of_nothing_are_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    folder = save_rounded(tiny_folder, tmp_path / "rounded", "gptq")
    tensors = load_file(folder / "model.safetensors")
    expected = load_prequantized(source_of(str(folder)), torch.float32, CPU)(IDS).logits
    name = f"{LAYER}.bias"
    for bias, is_refused in ((0.0, False), (0.5, True)):
        outputs = tensors[f"{LAYER}.scales"].shape[1]
        save_file({**tensors, name: torch.full((outputs,), bias)}, folder / "model.safetensors", {"format": "pt"})
        if is_refused:
            with pytest.raises(SetupError, match=rf"1 tensors are unexpected \({name}\)"):
                load_prequantized(source_of(str(folder)), torch.float32, CPU)
        else:
            assert torch.equal(load_prequantized(source_of(str(folder)), torch.float32, CPU)(IDS).logits, expected)


def test_a_layer_keeps_its_bias(tmp_path: Path) -> None:
    tiny("Qwen2").save_pretrained(tmp_path / "plain")
    folder = save_rounded(tmp_path / "plain", tmp_path / "rounded", "awq")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded-floats", dtype=torch.float32)
    with torch.inference_mode():
        found = load_prequantized(source_of(str(folder)), torch.float32, CPU)(IDS).logits
        torch.testing.assert_close(found, reference(IDS).logits, atol=1e-5, rtol=1e-4)


def test_without_its_files_the_layers_are_taken_to_be_of_4_bits(tiny_folder: Path, tmp_path: Path) -> None:
    folder = save_rounded(tiny_folder, tmp_path / "rounded", "gptq")
    source, form = source_of(str(folder)), Form("none", torch.bfloat16, "cpu")
    exact = footprint(source, skeleton_of(source), form)
    os.unlink(folder / "model.safetensors")
    assert footprint(source, skeleton_of(source), form) == exact


def test_what_lies_beside_the_weights_is_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    """Scales of activations and of the KV cache, buffers of old checkpoints, files that the index does not name."""
    folder = save_rounded(tiny_folder, tmp_path / "rounded", "compressed-tensors")
    tensors = load_file(folder / "model.safetensors")
    expected = load_prequantized(source_of(str(folder)), torch.float32, CPU)(IDS).logits
    (folder / "model.safetensors").unlink()
    beside = {
        f"model.layers.0.self_attn.{name}": torch.ones(1) for name in ("k_scale", "v_scale", "k_proj.output_scale", "rotary_emb.inv_freq")
    }
    save_file(tensors | beside, folder / "model-1-of-1.safetensors", {"format": "pt"})
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, folder / "old.safetensors", {"format": "pt"})
    index = {"weight_map": dict.fromkeys([*tensors, *beside], "model-1-of-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load_prequantized(source_of(str(folder)), torch.float32, CPU)(IDS).logits, expected)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(SetupError, match=r"index\.json cannot be read, is it complete\?"):
        load_prequantized(source_of(str(folder)), torch.float32, CPU)


@pytest.mark.parametrize("kind", ["gptq", "compressed-tensors"])
def test_a_projection_by_its_older_name(tmp_path: Path, kind: str) -> None:
    tiny("GPTNeoX").save_pretrained(tmp_path / "plain")
    folder = save_rounded(tmp_path / "plain", tmp_path / "rounded", kind)
    assert "embed_out.weight" in load_file(folder / "model.safetensors")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded-floats", dtype=torch.float32)
    with torch.inference_mode():
        found = load_prequantized(source_of(str(folder)), torch.float32, CPU)(IDS).logits
        torch.testing.assert_close(found, reference(IDS).logits, atol=1e-5, rtol=1e-4)


def of_gptq(**values: object) -> dict[str, object]:
    return {**GPTQ, **values}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (of_gptq(bits=3), r"quantized by 'gptq', and its levels have 3 bits; serve another quantization, or the original weights"),
        (of_gptq(checkpoint_format="marlin"), r"its checkpoint_format is marlin, only gptq and gptq_v2 are read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, r"its version is gemv, only gemm is read"),
        ({"quant_method": "awq", "bits": 8}, r"its levels have 8 bits"),
        ({**PACKED, "format": "nvfp4-pack-quantized"}, r"its format is nvfp4-pack-quantized, only float-quantized, .* are read"),
        ({"quant_method": "fp8", "weight_block_size": 48}, r"its block size is 48, not two numbers"),
        ({**PACKED, "transform_config": {"config_groups": {}}}, r"its transform_config changes what layers are given"),
        ({**PACKED, "sparsity_config": {"format": "sparse-24-bitmask"}}, r"its sparsity_config has the format sparse-24-bitmask"),
        ({"quant_method": "hqq"}, r"quantized by 'hqq', which Litmus does not load; .* bitsandbytes, awq, compressed-tensors, fp8, gptq"),
    ],
)
def test_other_forms_are_refused_by_name(tiny_folder: Path, tmp_path: Path, config: dict[str, object], sentence: str) -> None:
    folder = save_rounded(tiny_folder, tmp_path / "rounded", "gptq")
    edit_config(folder, quantization_config=config)
    with pytest.raises(SetupError, match=sentence) as refused:
        create_engine(ModelSettings(path=str(folder), slots=2, device="cpu"))
    assert "\n" not in refused.value.message


def without(name: str):
    return lambda tensors: tensors.pop(name)


def cut(name: str):
    return lambda tensors: tensors.update({name: tensors[name][:-1].clone()})


def as_floats(tensors) -> None:
    tensors[f"{LAYER}.weight"] = tensors[f"{LAYER}.weight"].to(torch.bfloat16)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (without("model.norm.weight"), r"1 tensors are missing \(model\.norm\.weight\)"),
        (without(f"{LAYER}.scales"), rf"1 tensors are missing \({LAYER}\.scales\)"),
        (without(f"{LAYER}.qzeros"), rf"1 tensors are missing \({LAYER}\.qzeros\)"),
        (lambda tensors: tensors.update({"more.weight": torch.ones(2)}), r"1 tensors are unexpected \(more\.weight\)"),
        (cut(f"{LAYER}.qweight"), rf"1 tensors are of another shape \({LAYER}\.qweight\)"),
        (cut(f"{LAYER}.scales"), rf"1 tensors are of another shape \({LAYER}\.qzeros\)"),
        (cut("model.norm.weight"), r"tensor model\.norm\.weight is \[\d+\], the model needs"),
    ],
)
def test_damaged_checkpoints_are_refused_by_name(tiny_folder: Path, tmp_path: Path, edit, sentence: str) -> None:
    refuse(save_rounded(tiny_folder, tmp_path / "rounded", "gptq"), edit, sentence)


def refuse(folder: Path, edit, sentence: str) -> None:
    """By the loader and by the estimate."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SetupError, match=sentence) as refused:
        create_engine(ModelSettings(path=str(folder), slots=2, device="cpu"))
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("kind", "edit", "sentence"),
    [
        ("gptq", lambda tensors: tensors.update({f"{LAYER}.g_idx": torch.tensor([0])}), rf"of another shape \({LAYER}\.g_idx\)"),
        ("gptq, groups in another order", lambda tensors: tensors[f"{LAYER}.g_idx"].add_(90), r"is in a group that it does not have"),
        ("compressed-tensors with zeros", without(f"{LAYER}.weight_zero_point"), rf"are missing \({LAYER}\.weight_zero_point\)"),
        ("compressed-tensors with zeros", cut(f"{LAYER}.weight_zero_point"), rf"of another shape \({LAYER}\.weight_zero_point\)"),
        ("compressed-tensors in bytes", as_floats, rf"{LAYER}\.weight has a scale, but is BF16, so it was not rounded"),
        ("compressed-tensors in 8-bit floats", as_floats, rf"{LAYER}\.weight has a scale, but is BF16, so it was not rounded"),
        ("fp8", cut(f"{LAYER}.weight_scale_inv"), rf"of another shape \({LAYER}\.weight_scale_inv\)"),
        ("compressed-tensors", lambda tensors: tensors.update({"language_model.x": torch.ones(1)}), r"is a model of more than text"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tiny_folder: Path, tmp_path: Path, kind: str, edit, sentence: str) -> None:
    refuse(save_rounded(tiny_folder, tmp_path / "rounded", kind), edit, sentence)


def test_a_file_that_is_cut_off_and_a_quantization_on_top_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = save_rounded(tiny_folder, tmp_path / "rounded", "gptq")
    with pytest.raises(SetupError, match=r"model\.quantize: .* is a checkpoint of gptq, whose weights keep their own precision; use none"):
        create_engine(ModelSettings(path=str(folder), slots=2, device="cpu", quantize="int4"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(SetupError, match=r"cannot be read, is it complete\?"):
        create_engine(ModelSettings(path=str(folder), slots=2, device="cpu"))


def test_the_config_is_read_as_hugging_face_writes_it(tiny_folder: Path, tmp_path: Path) -> None:
    """Some tools write quant_method in capitals or `w_bit` for `bits`; a config without an entry is a plain model."""
    folder = save_rounded(tiny_folder, tmp_path / "rounded", "awq")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_config(folder, quantization_config={"quant_method": "awq", "w_bit": config["bits"], "version": "GEMM"})
    assert create_engine(ModelSettings(path=str(folder), slots=2, device="cpu"))[1].weights.format == "awq"
