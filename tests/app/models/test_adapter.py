"""Adapters that peft made here, served on their base: the logits are those of base and adapter side by side; what cannot be is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from driving import drain
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from app.engine.events import Delta
from app.engine.request import Generate, SamplingParams
from app.errors import SetupError
from app.models.loading import create_engine
from app.models.source import _hub_source, source_of
from app.models.weights import load_model
from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from models.gguf import write_gguf
from models.synthetic import Shape, save

IDS = torch.tensor([[1, 5, 9, 33, 7, 200, 8]])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tied_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one matrix for embedding and vocabulary projection."""
    folder = tmp_path_factory.mktemp("tied")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, rows: int | None = None, **options: Any) -> Path:
    """Save an adapter with random weights as peft does; with `rows`, of a base with so many embeddings."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **options})
    peft_model = get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens")):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    peft_model.save_pretrained(folder)
    return folder


def unmerged_logits(base: Path, folder: Path, rows: int | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, folder)(IDS).logits


def settings(folder: Path, **options: Any) -> ModelSettings:
    return ModelSettings(path=str(folder), device="cpu", slots=2, **options)


def loaded(folder: Path, **options: Any) -> Any:
    return load_model(source_of(str(folder)), settings(folder, **options), CPU)


def edit_config(folder: Path, **values: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def edit_weights(folder: Path, edit: Any) -> Path:
    weights = load_file(folder / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def plain(tiny_folder: Path, tmp_path: Path) -> Path:
    return adapter(tiny_folder, tmp_path / "adapter")


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every linear layer": {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"up_proj": 2}},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "saved projection": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "saved both": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [5, 9]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "projection": {"target_modules": ["q_proj", "lm_head"]},
    "tied layers": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_base_and_adapter_side_by_side(
    tiny_folder: Path, tied_folder: Path, tmp_path: Path, kind: str, tied: bool
) -> None:
    base = tied_folder if tied else tiny_folder
    folder = adapter(base, tmp_path, **KINDS[kind])
    expected = unmerged_logits(base, folder)
    model = loaded(folder)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(IDS).logits
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 0.1, "the adapter changes nothing, so this test shows nothing"
    assert model.config.tie_word_embeddings == (model.lm_head.weight is model.model.embed_tokens.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_may_bring_more_tokens(tiny_folder: Path, tied_folder: Path, tmp_path: Path, tied: bool) -> None:
    base = tied_folder if tied else tiny_folder
    folder = adapter(base, tmp_path, rows=310)
    expected = unmerged_logits(base, folder, rows=310)
    model = loaded(folder)
    assert expected.shape[-1] == 310
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_greedy_answers_are_those_of_peft_and_the_facts_name_both_parts(tiny_folder: Path, plain: Path) -> None:
    engine, facts = create_engine(settings(plain, observer=str(plain)))
    engine.submit(Generate("a", tuple(IDS[0].tolist()), 12, SamplingParams(temperature=0.0), ignore_eos=True, logprobs=0))
    tokens = [row.token for event in drain(engine) if isinstance(event, Delta) for row in event.logprobs]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), plain)
    out = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert tokens == out[0, IDS.shape[1] :].tolist()
    base, own = facts.revision.split("+")
    assert base == create_engine(settings(tiny_folder))[1].revision and facts.observer_revision == facts.revision
    assert (facts.name, facts.observer, facts.chat, facts.dtype) == ("adapter", "adapter", True, "float32")
    edit_config(plain, lora_alpha=17)
    changed = create_engine(settings(plain))[1]
    assert changed.revision.startswith(f"{base}+") and changed.revision != facts.revision and changed.fingerprint != facts.fingerprint


@pytest.mark.parametrize("quantize", ["int8", "int4", "nf4", "fp4"])
def test_an_adapter_is_merged_before_its_base_is_quantized(tiny_folder: Path, plain: Path, tmp_path: Path, quantize: str) -> None:
    merged = tmp_path / "merged"
    shutil.copytree(tiny_folder, merged)
    PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16), plain
    ).merge_and_unload().save_pretrained(merged)

    def answer(folder: Path) -> list[int]:
        engine, facts = create_engine(settings(folder, quantize=quantize))
        assert (facts.quantize, facts.dtype) == (quantize, "bfloat16")
        engine.submit(Generate("a", tuple(IDS[0].tolist()), 8, SamplingParams(temperature=0.0), ignore_eos=True, logprobs=0))
        return [row.token for event in drain(engine) if isinstance(event, Delta) for row in event.logprobs]

    assert len(answer(plain)) == 8
    assert answer(plain) == answer(merged)
    ours, theirs = (loaded(folder, quantize=quantize)(IDS).logits for folder in (plain, merged))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_weights_in_the_older_format_are_read(tiny_folder: Path, plain: Path) -> None:
    expected = unmerged_logits(tiny_folder, plain)
    torch.save(load_file(plain / "adapter_model.safetensors"), plain / "adapter_model.bin")
    (plain / "adapter_model.safetensors").unlink()
    with torch.no_grad():
        torch.testing.assert_close(loaded(plain)(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_tokenizer_template_and_sampling_are_the_adapters_own_or_else_the_bases(tiny_folder: Path, plain: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (tiny_folder / "generation_config.json").write_text('{"eos_token_id": 1, "temperature": 0.6}')
    base = Tokenizer(str(tiny_folder))
    bare = Tokenizer(str(plain))
    assert bare.encode_chat(messages) == base.encode_chat(messages) and bare.generation_config == {"eos_token_id": 1, "temperature": 0.6}
    (plain / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    (plain / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}!{% endfor %}")
    own = Tokenizer(str(plain))
    assert own.chat.render(messages, None, True) == "hi!" and own.end_tokens() == frozenset({1, 7})
    assert own.base.get_vocab() == base.base.get_vocab()
    (plain / "chat_template.jinja").unlink()
    base.base.chat_template = None
    base.base.add_tokens(["<new>"])
    base.base.save_pretrained(plain)
    longer = Tokenizer(str(plain))
    assert "<new>" in longer.base.get_vocab() and longer.encode_chat(messages) == bare.encode_chat(messages)


def test_tokens_without_embeddings_are_refused(tiny_folder: Path, plain: Path) -> None:
    tokenizer = Tokenizer(str(tiny_folder)).base
    tokenizer.add_tokens([f"<new {index}>" for index in range(50)])
    tokenizer.save_pretrained(plain)
    with pytest.raises(SetupError, match=r"tokenizer has 308 tokens, the model only 300 embeddings"):
        create_engine(settings(plain))


def test_the_base_may_be_relative_to_the_adapter_or_to_the_working_directory(
    tiny_folder: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "base")
    edit_config(plain, base_model_name_or_path="../base")
    assert Path(source_of(str(plain)).base).resolve() == tmp_path / "base"
    edit_config(plain, base_model_name_or_path="base")
    monkeypatch.chdir(tmp_path)
    assert source_of(str(plain)).base == "base"
    assert source_of("adapter").config("model.path").vocab_size == 300


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no way to the hub."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _hub_source.cache_clear()
    return folder


def put(cache: Path, name: str, folder: Path, commit: str, ref: str = "main") -> None:
    """Lay a folder into the cache as huggingface_hub does."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / ref).write_text(commit)


def test_base_and_adapter_may_be_in_the_hubs_cache(tiny_folder: Path, other_folder: Path, plain: Path, cache: Path) -> None:
    expected = unmerged_logits(other_folder, plain)
    put(cache, "org/base", tiny_folder, "a" * 40)
    put(cache, "org/base", other_folder, "b" * 40, "older")
    put(cache, "org/adapter", edit_config(plain, base_model_name_or_path="org/base", revision="older"), "c" * 40)
    options = ModelSettings(path="org/adapter", device="cpu", slots=2)
    with torch.no_grad():
        logits = load_model(source_of("org/adapter"), options, CPU)(IDS).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    _, facts = create_engine(options)
    assert (facts.name, facts.revision, facts.chat) == ("adapter", f"{'b' * 40}+{'c' * 40}", True)
    assert source_of("org/base").weights_revision() == "a" * 40


def test_a_base_that_is_not_at_hand_is_named(plain: Path, cache: Path) -> None:
    edit_config(plain, base_model_name_or_path="org/base")
    with pytest.raises(SetupError, match=r"adapter is an adapter of org/base, which is not at hand: .*base_model_name_or_path"):
        create_engine(settings(plain))
    with pytest.raises(SetupError, match="names no base"):
        source_of(str(edit_config(plain, base_model_name_or_path=None)))


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
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PROMPT_TUNING"),
        (IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]), "IA3"),
    ],
)
def test_adapters_of_other_types_are_refused_by_name(tiny_folder: Path, tmp_path: Path, config: Any, name: str) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config).save_pretrained(tmp_path)
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


def test_a_merge_that_changes_results_is_refused(tied_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tied_folder, tmp_path, target_modules=["embed_tokens", "lm_head"])
    monkeypatch.setattr("app.models.merge._untie", lambda model: None)  # then peft merges into both matrices
    with pytest.raises(SetupError, match=r"merged into its base, layer (model\.embed_tokens|lm_head) gives another result by .*%"):
        loaded(folder)


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


def test_peft_is_imported_for_adapters_only(tiny_folder: Path) -> None:
    code = (
        "import sys; from app.models.loading import create_engine; from app.settings import ModelSettings; "
        f"create_engine(ModelSettings(path={str(tiny_folder)!r}, device='cpu', slots=1)); sys.exit('peft' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
