"""Adapters that peft made here, served on their base: the logits are those of base and adapter side by side."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from driving import drain
from peft_adapters import CPU, IDS, adapter, edit_config, loaded, peft, settings
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from app.engine.events import Delta
from app.engine.request import Generate, SamplingParams
from app.errors import SetupError
from app.models.loading import create_engine
from app.models.source import _hub_source, source_of
from app.models.weights import load_model
from app.settings import ModelSettings
from app.tokenizer import Tokenizer


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


def unmerged_logits(base: Path, folder: Path, rows: int | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, folder)(IDS).logits


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
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), plain)
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
    peft.PeftModel.from_pretrained(
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


def test_tokenizer_template_and_sampling_are_the_adapters_own_or_else_the_bases(tiny_folder: Path, plain: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    shutil.copytree(tiny_folder, tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": 1, "temperature": 0.6}')
    edit_config(plain, base_model_name_or_path="../base")
    base = Tokenizer(str(tmp_path / "base"))
    bare = Tokenizer(str(plain))
    assert bare.encode_chat(messages) == base.encode_chat(messages) and bare.generation_config == {"eos_token_id": 1, "temperature": 0.6}
    (plain / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    (plain / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}!{% endfor %}")
    own = Tokenizer(str(plain))
    assert own.chat.render(messages, None, True) == "hi!" and own.end_tokens() == frozenset({1, 7})
    assert own.base.get_vocab() == base.base.get_vocab()
    (plain / "chat_template.jinja").write_bytes(b"{{ messages }} \xe9")
    with pytest.raises(SetupError, match=r"chat_template\.jinja is not text in UTF-8"):
        Tokenizer(str(plain))
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


def test_a_merge_that_changes_results_is_refused(tied_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tied_folder, tmp_path, target_modules=["embed_tokens", "lm_head"])
    monkeypatch.setattr("app.models.merge._untie", lambda model: None)  # then peft merges into both matrices
    with pytest.raises(SetupError, match=r"merged into its base, layer (model\.embed_tokens|lm_head) gives another result by .*%"):
        loaded(folder)


def test_neither_peft_nor_a_compiler_is_imported_for_a_quantized_model(tiny_folder: Path) -> None:
    code = (
        "import sys; from app.models.loading import create_engine; from app.settings import ModelSettings; "
        f"create_engine(ModelSettings(path={str(tiny_folder)!r}, device='cpu', slots=1, quantize='nf4')); "
        "print(sorted({'peft', 'bitsandbytes', 'torch._inductor.compile_fx'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert (ran.stdout, "gemm_4bit" in ran.stderr) == ("['bitsandbytes']\n", False), ran.stderr
