"""Adapters that are served beside their base: read from disk, in the precisions of a base; what cannot be served so is refused by name."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import EVERY, llama_shapes, save_adapter
from driving import drain
from safetensors.torch import load_file, save_file
from tinymodels import SHAPES
from transformers import LlamaConfig

from app.engine.engine import Engine
from app.engine.events import Delta
from app.engine.lora import Shapes
from app.engine.request import Generate, SamplingParams
from app.errors import SetupError
from app.models.loading import create_engine
from app.models.lora import read_lora
from app.models.source import Source, source_of
from app.scoring.calibration import identity_of
from app.settings import ModelSettings, Settings
from models.gguf import write_gguf

LAYERS = llama_shapes(LlamaConfig(**SHAPES["Llama"][1]))
TINY = Shapes({**LAYERS, "lm_head": (300, 64)}, "lm_head")
QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def answer(engine: Engine, adapter: str | None) -> list[int]:
    job = Generate("a", (1, 5, 9, 33, 7), 12, SamplingParams(temperature=0.0), ignore_eos=True, logprobs=0, adapter=adapter)
    engine.submit(job)
    return [row.token for event in drain(engine) if isinstance(event, Delta) for row in event.logprobs]


def settings(folder: Path, **options: Any) -> ModelSettings:
    return ModelSettings(path=str(folder), device="cpu", slots=2, name="base", **options)


@pytest.fixture
def plain(tiny_folder: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", tiny_folder, LAYERS, 1)


def test_adapters_of_the_settings_are_served_as_if_they_were_merged(tiny_folder: Path, plain: Path, tmp_path: Path) -> None:
    ranks = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.self_attn.q_proj": 20}, "use_rslora": True, "r": 4}
    other = save_adapter(tmp_path / "other", tiny_folder, LAYERS, 2, ("q_proj", "down_proj"), **ranks, layers_to_transform=None)
    engine, facts = create_engine(settings(tiny_folder, adapters={"ft:base:one": str(plain), "other": str(other)}))
    pair = settings(plain, observer=str(tiny_folder))
    merged = {"ft:base:one": create_engine(pair), "other": create_engine(settings(other))}
    answers = {name: answer(engine, name) for name in merged}
    assert answers == {name: answer(model, None) for name, (model, _) in merged.items()}
    assert answer(engine, None) == answer(create_engine(settings(tiny_folder))[0], None) not in answers.values()
    assert [(adapter.name, adapter.path) for adapter in facts.adapters] == [("ft:base:one", str(plain)), ("other", str(other))]
    assert [adapter.revision for adapter in facts.adapters] == [model.revision for _, model in merged.values()]
    own = facts.of(facts.adapters[0])
    assert own.made == int((plain / "adapter_config.json").stat().st_mtime) and facts.made is None
    found = (own.name, own.parent, own.adapter, own.observer, own.observer_revision)
    assert found == ("ft:base:one", "base", "ft:base:one", "base", facts.revision)
    detector = ModelSettings(path=str(plain), observer=str(tiny_folder))
    assert identity_of(detector, own) == identity_of(pair, merged["ft:base:one"][1])  # what calibrates the pair is for both
    assert len({facts.fingerprint, *(adapter.fingerprint for adapter in facts.adapters)}) == 3


def test_the_base_may_be_a_gguf_file(tiny_folder: Path, plain: Path, tmp_path: Path) -> None:
    """An adapter names the original model, whose name the file's begins with."""
    file = write_gguf(tiny_folder, tmp_path / "tiny-model-Q8_0.gguf", "Q8_0")
    config = plain / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "org/Tiny-Model"}))
    source = source_of(str(file))
    assert set(read_lora(str(plain), source, TINY)[0]) == set(LAYERS)
    edit_config(plain, base_model_name_or_path=str(file))
    assert set(read_lora(str(plain), source, TINY)[0]) == set(LAYERS)


def edit_config(folder: Path, **values: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def read(folder: Path, base: Path) -> Any:
    return read_lora(str(folder), source_of(str(base)), TINY)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, "it has use_dora, which cannot be computed beside the base: serve it merged into its base"),
        ({"modules_to_save": ["lm_head"]}, "it has modules_to_save"),
        ({"bias": "all", "lora_bias": True}, "it has bias, lora_bias"),
        ({"trainable_token_indices": [5]}, "it has trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "it has init_lora_weights"),
        ({"layer_replication": [[0, 2]], "alora_invocation_tokens": [9]}, "it has alora_invocation_tokens, layer_replication"),
        ({"a_later_setting": 1}, "it has a_later_setting"),
        ({"peft_type": "IA3"}, "of the type IA3; only LORA"),
        ({"task_type": "SEQ_CLS"}, "for the task SEQ_CLS"),
        ({"base_model_name_or_path": "org/other"}, "it is of org/other, not of .*base_model_name_or_path"),
        ({"base_model_name_or_path": None}, "it is of a base that it does not name, not of"),
        ({"r": 8}, r"down_proj has matrices of rank 4, but its adapter_config.json says rank 8"),
        ({"lora_alpha": "much"}, "rank 4 and lora_alpha much"),
    ],
)
def test_settings_that_cannot_be_served_beside_a_base_are_refused_by_name(
    plain: Path, tiny_folder: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SetupError, match=message):
        read(edit_config(plain, **values), tiny_folder)


@pytest.mark.parametrize(
    ("rename", "shape", "message"),
    [
        (None, None, r"1 tensors are missing \(base_model.*q_proj\.lora_A"),
        ("w_proj", (4, 64), r"no linear layers of the model: model.layers.0.self_attn.w_proj"),
        ("q_proj", (4, 63), r"1 tensors are of another shape \(model.layers.0.self_attn.q_proj\)"),
        ("q_proj", (3, 64), r"1 tensors are of another shape"),
        ("q_proj", (4, 64, 1), r"1 tensors are of another shape"),
    ],
)
def test_matrices_that_do_not_fit_are_refused_by_name(
    plain: Path, tiny_folder: Path, rename: str | None, shape: tuple[int, ...] | None, message: str
) -> None:
    file = plain / "adapter_model.safetensors"
    weights = load_file(file)
    del weights[QUERY]
    if rename is not None and shape is not None:
        weights[QUERY.replace("q_proj", rename)] = torch.ones(shape)
    save_file(weights, file)
    with pytest.raises(SetupError, match=message):
        read(plain, tiny_folder)


def test_a_whole_layer_that_is_missing_is_named(plain: Path, tiny_folder: Path) -> None:
    file = plain / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if "layers.1.mlp" not in name}, file)
    with pytest.raises(SetupError, match=r"3 tensors are missing \(model.layers.1.mlp.gate_proj"):
        read(plain, tiny_folder)
    for values in (
        {"layers_to_transform": [0]},
        {"exclude_modules": r"model\.layers\.1\.mlp\..*"},
        {"exclude_modules": ["1.mlp.gate_proj"]},
    ):
        edit_config(plain, **values)
        if "layers_to_transform" in values:
            assert len(read(plain, tiny_folder)[0]) == 11
            edit_config(plain, layers_to_transform=None, target_modules=rf".*({'|'.join(EVERY)})")
    with pytest.raises(SetupError, match=r"2 tensors are missing \(model.layers.1.mlp.up_proj"):
        read(plain, tiny_folder)


def test_embedding_projection_and_an_empty_adapter_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    head = save_adapter(tmp_path / "head", tiny_folder, dict(TINY.layers), 1, ("lm_head",))
    with pytest.raises(SetupError, match="vocabulary projection lm_head, which all rows share: serve it merged"):
        read(head, tiny_folder)
    embedding = save_adapter(tmp_path / "embedding", tiny_folder, LAYERS, 1)
    save_file({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 300)}, embedding / "adapter_model.safetensors")
    with pytest.raises(SetupError, match="no linear layers of the model: base_model.model.model.embed_tokens.lora_embedding_A"):
        read(embedding, tiny_folder)
    with pytest.raises(SetupError, match="it changes no layer"):
        read(save_adapter(tmp_path / "empty", tiny_folder, {}, 1, ()), tiny_folder)
    with pytest.raises(SetupError, match="there is no adapter_config.json"):
        read(tmp_path, tiny_folder)


def test_an_adapter_of_a_model_is_none_of_that_model_with_another_adapter(plain: Path, tiny_folder: Path, tmp_path: Path) -> None:
    second = save_adapter(tmp_path / "second", tiny_folder, LAYERS, 3)
    with pytest.raises(SetupError, match=f"it is of .*, not of {re.escape(str(plain))}"):
        read_lora(str(second), source_of(str(plain)), TINY)
    assert isinstance(source_of(str(plain)), Source)


def test_a_folder_of_the_settings_that_does_not_fit_stops_the_start_and_is_named(tiny_folder: Path, plain: Path, tmp_path: Path) -> None:
    edit_config(plain, use_dora=True)
    with pytest.raises(SetupError, match=rf"adapter 'tuned' \({re.escape(str(plain))}\): it has use_dora"):
        create_engine(settings(tiny_folder, adapters={"tuned": str(plain)}))
    shutil.rmtree(plain)
    with pytest.raises(SetupError, match=r"model.adapters: 'tuned' is to be in .* no folder with an adapter_config.json"):
        settings(tiny_folder, adapters={"tuned": str(plain)}).check_paths()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"model": {"adapters": {"a b": "x"}}}, "model.adapters"),
        ({"model": {"name": "same", "adapters": {"same": "x"}}}, "model and model.adapters would both be served as 'same'"),
        (
            {"model": {"adapters": {"same": "x"}}, "models": [{"path": "y", "adapters": {"same": "z"}}]},
            "model.adapters and models.0.adapters",
        ),
        ({"models": [{"upstream": "http://a:1", "name": "b", "adapters": {"c": "d"}}]}, "adapters is for a model that is loaded here"),
    ],
)
def test_names_of_adapters_are_names_of_their_own(models: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**models)
