"""A start that cannot work ends before or while loading with one sentence: what is wrong, and what would be right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tinymodels import VOCABULARY, save_tiny, tiny
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, RwkvConfig

from app.errors import InvalidRequest, SetupError
from app.models.loading import create_engine
from app.settings import ModelSettings, read
from app.tokenizer import Tokenizer

RWKV = {"vocab_size": VOCABULARY, "context_length": 128, "hidden_size": 64, "num_hidden_layers": 2}


def with_config(folder: Path, target: Path, **values: object) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **values}))
    return target


def of_family(name: str, folder: Path, target: Path) -> Path:
    return with_tokenizer(tiny(name), folder, target)


def of_kind(config: PretrainedConfig, folder: Path, target: Path) -> Path:
    return with_tokenizer(AutoModelForCausalLM.from_config(config), folder, target)


def with_tokenizer(model: PreTrainedModel, folder: Path, target: Path) -> Path:
    model.save_pretrained(target)
    for file in folder.glob("token*"):
        shutil.copy(file, target)
    return target


Case = Callable[[Path, Path], dict[str, object]]
CASES: dict[str, tuple[Case, str]] = {
    "a quantization that an old GPU does not run": (
        lambda folder, _: {"path": folder, "quantize": "int4"},
        r"int4 needs an NVIDIA card of compute capability 8\.0 or later; on cuda:0 use nf4",
    ),
    "a cache that a GPU does not have": (
        lambda folder, _: {"path": folder, "cache_dtype": "int8"},
        r"model\.cache_dtype: int8 runs on a CPU only; on cuda:0 use auto",
    ),
    "a precision in which a CPU rounds nothing": (
        lambda folder, _: {"path": folder, "quantize": "nf4", "dtype": "float16", "device": "cpu"},
        r"model\.dtype: .* not in float16",
    ),
    "a device that is not there": (lambda folder, _: {"path": folder, "device": "cuda:7"}, r"model\.device: cuda:7 does not exist"),
    "layers that keep no keys and values": (
        lambda folder, new: {"path": with_config(folder, new, layer_types=["linear_attention", "full_attention"]), "device": "cpu"},
        r"its layers of the kind linear_attention keep something else",
    ),
    "attention that the engine does not do": (
        lambda folder, new: {"path": of_family("Falcon", folder, new), "device": "cpu"},
        r"FalconForCausalLM cannot be served: .* AttentionInterface",
    ),
    "a layer that bitsandbytes does not round": (
        lambda folder, new: {"path": of_family("GPTNeoX", folder, new), "quantize": "nf4", "device": "cpu"},
        r"does not run on cpu with quantize=nf4",
    ),
    "a layer whose own weight the model looks for": (
        lambda folder, new: {"path": of_kind(RwkvConfig(**RWKV), folder, new), "quantize": "int4", "device": "cpu"},
        r"does not run on cpu with quantize=int4: .* no attribute 'weight'",
    ),
    "an observer with another tokenizer": (
        lambda folder, _: {"path": folder, "observer": "models/storyteller", "device": "cpu"},
        r"model\.observer: .* another vocabulary .* same tokenizer",
    ),
    "a quantization of another maker": (
        lambda folder, new: {"path": with_config(folder, new, quantization_config={"quant_method": "hqq", "bits": 4}), "device": "cpu"},
        r"is quantized by 'hqq', which Litmus does not load; serve the original weights",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_ends_the_start_with_one_sentence(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    make, sentence = CASES[case]
    fields = {name: str(value) for name, value in make(tiny_folder, tmp_path / "new").items()}
    if "GPU" in case:
        monkeypatch.setattr("app.models.loading.resolve_devices", lambda assignment: (torch.device("cuda:0"),))
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    with pytest.raises(SetupError, match=sentence) as refused:
        create_engine(ModelSettings(slots=2, **fields))  # type: ignore[arg-type]
    assert "\n" not in refused.value.message


def test_too_little_memory_is_told_before_anything_is_loaded(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("app.models.loading.load_model", loaded)
    monkeypatch.setattr("app.models.room.device_memory", lambda device, weights: 400_000)
    with pytest.raises(
        SetupError, match=r"2 slots do not fit cpu: weights .* need .* GiB of .* slots would fit; or lower --model\.context"
    ):
        create_engine(ModelSettings(path=str(tiny_folder), slots=2, device="cpu"))


def test_what_is_told_before_is_what_the_engine_then_says(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sentence, whether it was told from the config or counted in the loaded model."""
    messages = []
    for before in (10**6, 10**12):  # bytes that the first look finds; the engine's own finds too few
        with monkeypatch.context() as patch:
            patch.setattr("app.models.room.device_memory", lambda *_, free=before: free)
            patch.setattr("app.engine.conversion.device_memory", lambda *_: 10**6)
            with pytest.raises(SetupError) as refused:
                create_engine(ModelSettings(path=str(tiny_folder), slots=9, device="cpu"))
        messages.append(refused.value.message)
    assert messages[0] == messages[1]


def test_a_small_model_is_not_built_twice_to_find_that_it_fits(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.room.skeleton_of", lambda source: pytest.fail("it takes time at every start"))
    create_engine(ModelSettings(path=str(tiny_folder), slots=2, device="cpu"))


@pytest.mark.parametrize(
    ("option", "value"), [("cache", "gpu"), ("quantize", "int3"), ("dtype", "float8"), ("device", "tpu"), ("slots", "0")]
)
def test_a_setting_that_nothing_can_do_is_named(option: str, value: str) -> None:
    with pytest.raises(SetupError, match=rf"setting model\.{option}: "):
        read([f"--model.{option}", value])


def test_without_a_chat_template_chat_is_refused_and_completions_work(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "bare", 128, "</s>")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    _, facts = create_engine(ModelSettings(path=str(folder), slots=2, device="cpu"))
    assert not facts.chat
    tokenizer = Tokenizer(str(folder))
    assert tokenizer.encode("hello", "prompt")
    with pytest.raises(InvalidRequest, match="chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])
