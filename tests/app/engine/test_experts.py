"""Mixtures of experts: each expert's layers are rounded and run like all others, and a row's answer does not depend on its neighbours."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoders import CONFIGS, plain_model
from driving import drain, kernel_or_skip
from gguf_families import EXPERTS, FAMILIES, VOCABULARY, create_model, write_family
from rounding import save_mxfp4, save_rounded
from transformers import AutoModelForCausalLM, Mxfp4Config, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine
from app.engine.events import Delta
from app.engine.experts import Experts, has_joined_experts, separate_experts
from app.engine.fused import mix
from app.engine.linear import TiledLinear
from app.engine.lora import shapes_of
from app.engine.mixture import CompiledMixture
from app.engine.request import Generate, SamplingParams
from app.models.cache import slot_attention
from app.models.footprint import Form, footprint
from app.models.loading import create_engine
from app.models.skeleton import skeleton_of
from app.models.source import source_of
from app.models.weights import import_bitsandbytes, round_experts
from app.settings import ModelSettings
from models.synthetic import Shape, create_tokenizer, save

IDS = torch.randint(2, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(3))
MORE = {  # what mixtures have that route otherwise, beside what all have
    "deepseek_v3": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16}
    | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": 8},
    "granitemoe": {},
    "minimax_m2": {"head_dim": 16},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2},
}


def mixture(kind: str) -> PreTrainedModel:
    sizes = dict(FAMILIES["qwen3moe"].config().to_dict(), **EXPERTS)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    shared = {name: sizes[name] for name in (*names, *EXPERTS)} | {"intermediate_size": 96, "pad_token_id": None}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**shared | MORE[kind]), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1) if parameter.ndim > 1 else parameter.data.normal_(1, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen 3 with experts, in transformers' format."""
    target = tmp_path_factory.mktemp("mixture")
    create_model(FAMILIES["qwen3moe"]).save_pretrained(target)
    create_tokenizer(VOCABULARY).save_pretrained(target)
    return target


def greedy(engine: Engine, count: int = 1) -> list[list[int]]:
    """The tokens of `count` requests at once, each a token shorter than the one before."""
    for index in range(count):
        ids = tuple(IDS[0, : IDS.shape[1] - index].tolist())
        engine.submit(Generate(str(index), ids, 10, SamplingParams(temperature=0.0), ignore_eos=True, logprobs=0))
    tokens: list[list[int]] = [[] for _ in range(count)]
    for event in drain(engine):
        if isinstance(event, Delta):
            tokens[int(event.id)] += [row.token for row in event.logprobs]
    return tokens


@pytest.mark.parametrize("kind", MORE)
def test_separate_experts_compute_what_joined_ones_do(kind: str) -> None:
    model = mixture(kind)
    with torch.inference_mode():
        expected = model(IDS).logits
        separate_experts(model)
        assert not has_joined_experts(model) and any(isinstance(module, Experts) for module in model.modules())
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "quantize"), [("float32", "none"), ("bfloat16", "none"), ("auto", "int4"), ("auto", "int8")])
def test_a_mixture_is_served_in_each_precision(folder: Path, dtype: str, quantize: str) -> None:
    engine, facts = create_engine(ModelSettings(path=str(folder), slots=4, dtype=dtype, quantize=quantize))
    if dtype == "float32":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=10, do_sample=False, eos_token_id=None)
        assert greedy(engine) == [expected[0, IDS.shape[1] :].tolist()]
    else:
        experts = [module for module in engine.performer.model.modules() if isinstance(module, Experts)]
        layers = [layer for each in experts for expert in each for name, layer in expert.named_children()]
        assert len(layers) == 4 * 4 * 3 and all(isinstance(layer, TiledLinear) for layer in layers)
    alone = [greedy(engine)[0]]
    assert greedy(engine, 4)[:1] == alone
    source = source_of(str(folder))
    assert slot_attention(skeleton_of(source)).shapes.keys() == set(range(4))  # what an estimate asks for
    told = footprint(source, skeleton_of(source), Form(quantize, engine.performer.model.dtype, "cpu", 16)).total()
    assert facts.weights.bytes == pytest.approx(told, rel=0.03)


@pytest.mark.parametrize("name", ["qwen3moe", "qwen2moe"])
def test_nf4_rounds_experts_whose_rows_are_whole_blocks(tmp_path: Path, name: str) -> None:
    """Qwen 2 also has a layer of one output, for which bitsandbytes has no layout on processors with AVX512-BF16."""
    own = FAMILIES[name].config()
    config = type(own)(**{**own.to_dict(), "moe_intermediate_size": 64, "num_hidden_layers": 2, "layer_types": None})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    create_tokenizer(VOCABULARY).save_pretrained(tmp_path)
    engine, facts = create_engine(ModelSettings(path=str(tmp_path), slots=2, quantize="nf4"))
    assert len(greedy(engine)[0]) == 10
    source = source_of(str(tmp_path))
    told = [footprint(source, skeleton_of(source), Form(scheme, torch.bfloat16, "cpu", 16)).total() for scheme in ("nf4", "none")]
    assert facts.weights.bytes == pytest.approx(told[0], rel=0.05) and told[0] < 0.6 * told[1]


def test_rounded_experts_keep_their_biases() -> None:
    family = FAMILIES["gpt-oss"]
    model = create_model(replace(family, values={**family.values, "intermediate_size": 64}))
    separate_experts(model)
    biases = {name: bias.clone() for name, bias in model.named_parameters() if ".experts." in name and name.endswith(".bias")}
    import_bitsandbytes()
    round_experts(model, "nf4")
    assert len(biases) == 4 * 4 * 3 and sum(type(module).__name__ == "Linear4bit" for module in model.modules()) == len(biases)
    for name, bias in biases.items():
        assert torch.equal(model.get_parameter(name), bias)


@pytest.mark.parametrize(
    ("name", "type_name"), [("qwen3moe", "Q4_0"), ("qwen3moe", "Q8_0"), ("qwen2moe", "Q4_0"), ("mixtral", "Q8_0"), ("gpt-oss", "MXFP4")]
)
def test_experts_of_a_gguf_file_keep_their_precision(tmp_path: Path, name: str, type_name: str) -> None:
    tokenizer = save(Shape(hidden=64, layers=1, heads=2, kv_heads=2, ff=64, vocabulary=VOCABULARY, context=64), tmp_path / "tokenizer", 0)
    path = write_family(FAMILIES[name], create_model(FAMILIES[name]), tokenizer, tmp_path / f"{name}.gguf", type_name)
    engine, facts = create_engine(ModelSettings(path=str(path), slots=2))
    assert facts.weights.types[0] == type_name and len(greedy(engine)[0]) == 10
    experts = [module for module in engine.performer.model.modules() if isinstance(module, Experts)]
    bits = {layer.packed.bits for each in experts for layer in each.modules() if isinstance(layer, TiledLinear)}
    assert bits == {8 if type_name == "Q8_0" else 4}


@pytest.mark.parametrize("kind", ["gptq", "awq", "fp8"])
def test_experts_that_others_rounded_are_read(folder: Path, tmp_path: Path, kind: str) -> None:
    rounded = save_rounded(folder, tmp_path / "rounded", kind)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded-floats", dtype=torch.float32)
    engine, _ = create_engine(ModelSettings(path=str(rounded), slots=2, dtype="float32"))
    expected = reference.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert greedy(engine) == [expected[0, IDS.shape[1] :].tolist()]


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "BF16"])
def test_experts_in_one_call_compute_what_each_does(tmp_path: Path, type_name: str) -> None:
    tokenizer = save(Shape(hidden=64, layers=1, heads=2, kv_heads=2, ff=64, vocabulary=VOCABULARY, context=64), tmp_path / "tokenizer", 0)
    path = write_family(FAMILIES["qwen3moe"], create_model(FAMILIES["qwen3moe"]), tokenizer, tmp_path / "model.gguf", type_name)
    engine, _ = create_engine(ModelSettings(path=str(path), slots=2))
    kernel_or_skip()
    experts = next(module for module in engine.performer.model.modules() if isinstance(module, Experts))
    compiled, threads = experts.compiled, torch.get_num_threads()
    assert compiled is not None
    x = torch.randn(11, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    together = {}
    for counts in ([3, 0, 2, 4], [0, 11, 0, 0], [1, 1, 1, 0, 8]):  # of the last, eight rows are of no expert
        for used in (1, 2, 8):
            torch.set_num_threads(used)
            together[used] = compiled(x[: sum(counts)], torch.tensor(counts))
        torch.set_num_threads(threads)
        assert torch.equal(together[1], together[2]) and torch.equal(together[1], together[8])
        torch.testing.assert_close(
            together[1].float(), experts._compute(x[: sum(counts)], torch.tensor(counts)).float(), atol=2e-2, rtol=2e-2
        )
    alone = compiled(x[1:2], torch.tensor([0, 1, 0, 0]))
    assert torch.equal(alone[0], compiled(x, torch.tensor([0, 11, 0, 0]))[1])


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_moe, shares of all", "mixtral", "gpt_oss"])
def test_router_and_experts_in_one_call_compute_what_the_model_does(kind: str) -> None:
    """Where the model computes in float32: of experts that are almost as good its bfloat16 chooses others."""
    kernel_or_skip()
    config = CONFIGS[kind]
    model = plain_model(config)
    whole = copy.deepcopy(model).float().base_model.layers[0].mlp
    flat = create_flat_model(model, CacheLimits(slots=1, context=64))
    assert flat._decoder is not None
    compiled = flat._decoder.layers[0].mlp
    assert isinstance(compiled, CompiledMixture)
    x, residual = (torch.randn(40, config.hidden_size, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    with torch.inference_mode():
        expected, out = residual.float() + mix(whole, x.float()), compiled(x, residual)
    torch.testing.assert_close(out.float(), expected, atol=0.02 * float(expected.abs().max()), rtol=0.02)
    assert torch.equal(compiled(x[3:4], residual[3:4]), out[3:4])


def test_gpt_oss_is_read_as_it_is_published(tmp_path: Path) -> None:
    create_model(FAMILIES["gpt-oss"]).save_pretrained(tmp_path / "plain")
    create_tokenizer(VOCABULARY).save_pretrained(tmp_path / "plain")
    rounded = save_mxfp4(tmp_path / "plain", tmp_path / "rounded")
    whole = Mxfp4Config(dequantize=True)
    reference = AutoModelForCausalLM.from_pretrained(rounded, dtype=torch.float32, quantization_config=whole)
    assert not torch.equal(
        reference.model.layers[1].mlp.experts.down_proj, create_model(FAMILIES["gpt-oss"]).model.layers[1].mlp.experts.down_proj
    )
    engine, facts = create_engine(ModelSettings(path=str(rounded), slots=2, dtype="float32"))
    expected = reference.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert greedy(engine) == [expected[0, IDS.shape[1] :].tolist()]
    engine, facts = create_engine(ModelSettings(path=str(rounded), slots=2))
    bits = {layer.packed.bits for layer in engine.performer.model.modules() if isinstance(layer, TiledLinear)}
    source = source_of(str(rounded))
    estimated = footprint(source, skeleton_of(source), Form("none", torch.bfloat16, "cpu", 16)).total()
    assert len(greedy(engine)[0]) == 10 and 4 in bits and facts.weights.bytes == pytest.approx(estimated, rel=0.05)


def test_adapters_know_no_layers_of_experts() -> None:
    model = create_model(FAMILIES["qwen2moe"])
    separate_experts(model)
    names = shapes_of(model, model.get_output_embeddings()).layers
    assert "model.layers.0.mlp.shared_expert.up_proj" in names and not any(".experts." in name for name in names)
