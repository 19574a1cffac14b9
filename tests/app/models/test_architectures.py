"""GGUF files of each architecture: the engine computes what transformers does of the model that was written, and llama.cpp of the file."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import gguf
import httpx
import pytest
import torch
from driving import drain
from gguf_families import FAMILIES, VOCABULARY, create_model, write_family
from ports import free_port
from serving import wait_for
from transformers import PreTrainedModel

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.events import Delta
from app.engine.linear import PackedEmbedding
from app.engine.request import Generate, SamplingParams
from app.errors import SetupError
from app.models.architectures import ARCHITECTURES, config_of
from app.models.gguf import GGUFFile
from app.models.gguf_weights import load_gguf
from app.models.loading import create_engine
from app.settings import ModelSettings
from models.synthetic import Shape, save

IDS = torch.randint(2, VOCABULARY, (1, 80), generator=torch.Generator().manual_seed(1))  # more than a window, and than a first context
# What the engine computes by itself: windows, scaled and capped logits, queries that are scaled by their position, layers without rotation.
COMPUTED = ("gemma2", "gpt-oss", "gemma3-capped", "granite", "command-r", "cohere2", "mistral3", "smollm3", "exaone4-windows", "olmo3-yarn")
LLAMA_SERVER = os.environ.get("LITMUS_LLAMA_SERVER") or shutil.which("llama-server")
OTHER_WINDOWS = {"phi3", "exaone4-windows"}  # llama.cpp leaves out Phi 3's window, and EXAONE 4's but for the 64 layers of the largest


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(hidden=64, layers=1, heads=2, kv_heads=2, ff=64, vocabulary=VOCABULARY, context=64)
    return save(shape, tmp_path_factory.mktemp("tokenizer"), 0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Callable[[str], tuple[PreTrainedModel, Path]]:
    """The model of a family, and its file."""
    folder = tmp_path_factory.mktemp("families")

    @cache
    def write(name: str) -> tuple[PreTrainedModel, Path]:
        model = create_model(FAMILIES[name])
        return model, write_family(FAMILIES[name], model, tokenizer, folder / f"{name}.gguf")

    return write


def test_every_architecture_has_a_family() -> None:
    assert {family.architecture for family in FAMILIES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_is_the_model_that_was_written(written: Callable[[str], tuple[PreTrainedModel, Path]], name: str) -> None:
    model, path = written(name)
    with torch.inference_mode():
        torch.testing.assert_close(load_gguf(GGUFFile(path), torch.float32)(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_a_scaled_embedding_and_its_projection_share_their_weights(tmp_path: Path, tokenizer: Path, name: str, dtype: torch.dtype) -> None:
    model = create_model(FAMILIES[name])
    path = write_family(FAMILIES[name], model, tokenizer, tmp_path / "rounded.gguf", "Q8_0")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            values = gguf.quantize(parameter.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
            parameter.data = torch.from_numpy(gguf.dequantize(values, gguf.GGMLQuantizationType.Q8_0))
    with torch.inference_mode():
        expected = model(IDS).logits[0]
        loaded = load_gguf(GGUFFile(path), dtype)
        if dtype == torch.float32:
            torch.testing.assert_close(loaded(IDS).logits[0], expected, atol=1e-4, rtol=1e-4)
        flat = create_flat_model(loaded, CacheLimits(2, 256))
        logits = flat.head(flat.forward_uncached(IDS[0].tolist()))
    assert (logits - expected).norm() < (1e-4 if dtype == torch.float32 else 0.03) * expected.norm()
    embedding, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    if isinstance(embedding, PackedEmbedding):
        assert embedding.packed is head.packed and dtype == torch.bfloat16
    else:
        assert embedding.weight is head.weight and dtype == torch.float32


@pytest.mark.parametrize("name", COMPUTED)
def test_greedy_of_a_file_is_generate_of_the_model(written: Callable[[str], tuple[PreTrainedModel, Path]], name: str) -> None:
    model, path = written(name)
    engine, _ = create_engine(ModelSettings(path=str(path), slots=2, dtype="float32"))
    engine.submit(Generate("a", tuple(IDS[0].tolist()), 12, SamplingParams(temperature=0.0), ignore_eos=True, logprobs=0))
    tokens = [row.token for event in drain(engine) if isinstance(event, Delta) for row in event.logprobs]
    expected = model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert tokens == expected[0, IDS.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("qwen3", "embedding_length", None, r"its metadata have no qwen3\.embedding_length"),
        ("qwen3", "attention.layer_norm_rms_epsilon", None, r"its metadata have no qwen3\.attention\.layer_norm_rms_epsilon"),
        ("qwen3", "attention.value_length", 16, "values are of another length than its keys"),
        ("qwen3", "attention.key_length", 2**20, r"qwen3\.attention\.key_length is 1048576, not a number from 1 to 700"),
        ("llama", "rope.dimension_count", 8, "it rotates 8 of the 16 values of a head, which is not read of this architecture"),
        ("llama", "rope.scaling.type", "martian", "rope scaling 'martian' is not supported"),
        ("granite", "rope.scaling.finetuned", False, "a Granite without rotary positions"),
        ("mistral3", "rope.scaling.type", "none", "a mistral3 model without yarn is not read"),
        ("qwen3moe", "expert_count", 2**31, "tell of 2147483648 experts, 2 of them for a token; its tensors are those of 4"),
        ("qwen3moe", "expert_used_count", 9, "tell of 4 experts, 9 of them for a token"),
        ("gpt-oss", "attention.sliding_window", None, r"no gpt-oss\.attention\.sliding_window"),
        ("qwen3", "attention.head_count_kv", [2, 2, 1, 2], r"head_count_kv is \[2, 2, 1, 2\], not a number"),
        ("phi3-long", "rope.scaling.original_context_length", None, r"no phi3\.rope\.scaling\.original_context_length"),
    ],
)
def test_metadata_that_are_missing_or_not_read_are_named(
    written: Callable[[str], tuple[PreTrainedModel, Path]], name: str, key: str, value: object, message: str
) -> None:
    file = GGUFFile(written(name)[1])
    file.metadata[f"{file.architecture}.{key}"] = value
    with pytest.raises(SetupError, match=message):
        config_of(file)


def test_keys_of_older_files_are_read(written: Callable[[str], tuple[PreTrainedModel, Path]]) -> None:
    file = GGUFFile(written("llama")[1])
    del file.metadata["llama.attention.head_count_kv"], file.metadata["llama.rope.freq_base"], file.metadata["llama.rope.dimension_count"]
    file.metadata["llama.rope.scale_linear"] = 4.0
    config = config_of(file)
    assert config.num_key_value_heads == config.num_attention_heads == 4
    assert config.rope_parameters == {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 4.0}


def test_what_files_leave_out_or_say_for_each_layer_is_as_in_llama_cpp(written: Callable[[str], tuple[PreTrainedModel, Path]]) -> None:
    granite = GGUFFile(written("granite")[1])
    granite.metadata["granite.attention.head_count_kv"] = [2, 2, 2, 2]
    assert config_of(granite).num_key_value_heads == 2
    gemma = GGUFFile(written("gemma2")[1])
    del gemma.metadata["gemma2.attention.sliding_window"]
    assert config_of(gemma).sliding_window == 4096 and config_of(gemma).layer_types[:2] == ["sliding_attention", "full_attention"]
    gemma.metadata["gemma2.attention.sliding_window_pattern"] = 0
    assert set(config_of(gemma).layer_types) == {"sliding_attention"}
    older = GGUFFile(written("mixtral")[1])
    older.tensors = {name: tensor for name, tensor in older.tensors.items() if not name.endswith("ffn_up_exps.weight")}
    with pytest.raises(SetupError, match="its experts are tensors of their own, as in older files"):
        config_of(older)


def test_heads_for_keys_by_layer_say_which_layers_are_convolutions(written: Callable[[str], tuple[PreTrainedModel, Path]]) -> None:
    file = GGUFFile(written("lfm2moe")[1])
    assert config_of(file).layer_types == ["conv", "full_attention", "conv", "full_attention"]
    for wrong, message in (
        ([0, 2, 0], "of 4 layers, and of heads for keys of 3"),
        ([0, 0, 0, 0], "is .* not a number"),
        ([0, -2, 0, -2], "is"),
    ):
        file.metadata["lfm2moe.attention.head_count_kv"] = wrong
        with pytest.raises(SetupError, match=message):
            config_of(file)


def test_the_largest_gemma_3_scales_its_queries_otherwise(written: Callable[[str], tuple[PreTrainedModel, Path]]) -> None:
    file = GGUFFile(written("gemma3")[1])
    assert config_of(file).query_pre_attn_scalar == 32
    file.metadata["gemma3.block_count"] = 62
    file.tensors |= {f"blk.{layer}.attn_q.weight": file.tensors["blk.0.attn_q.weight"] for layer in range(62)}
    assert config_of(file).query_pre_attn_scalar == 16


@pytest.mark.skipif(LLAMA_SERVER is None, reason="needs llama-server on PATH or in LITMUS_LLAMA_SERVER")
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - OTHER_WINDOWS))
def test_llama_cpp_computes_the_same(written: Callable[[str], tuple[PreTrainedModel, Path]], name: str) -> None:
    model, path = written(name)
    with torch.inference_mode():
        expected = model(IDS).logits[0, -1].log_softmax(-1)
    logprobs = _logprobs_of_llama_cpp(path, IDS[0].tolist())
    assert len(logprobs) == VOCABULARY
    torch.testing.assert_close(torch.tensor([logprobs[token] for token in range(VOCABULARY)]), expected, atol=0.02, rtol=0)


def _logprobs_of_llama_cpp(path: Path, ids: list[int]) -> dict[int, float]:
    """Of the token after `ids`, by its id."""
    port = free_port()
    command = [str(LLAMA_SERVER), "-m", path, "--port", str(port), *"-c 256 -np 1 -t 1 --no-warmup -fa off -ctk f32 -ctv f32".split()]
    libraries = {**os.environ, "LD_LIBRARY_PATH": str(Path(str(LLAMA_SERVER)).resolve().parent)}
    server = subprocess.Popen(command, env=libraries, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for(lambda: _is_healthy(client))
            body = {"prompt": ids, "n_predict": 1, "n_probs": VOCABULARY, "logit_bias": [[300, 100.0]]}  # which token is drawn: text
            answer = json.loads(client.post("/completion", json=body).raise_for_status().text)
    finally:
        server.terminate()
        server.wait()
    return {each["id"]: each["logprob"] for each in answer["completion_probabilities"][0]["top_logprobs"]}


def _is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
