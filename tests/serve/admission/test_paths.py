"""From where a request may load a model, and that nothing else is opened."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from app.errors import Forbidden
from app.settings import ModelSettings, SecuritySettings, Settings
from serve.admission.paths import ModelPaths


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Allowed models, others, and links and adapters that lead from one to the other."""
    for name in ("allowed/a", "allowed/leaving", "allowed/adapter", "allowed/inside", "secret/b", "cache/models--org--known/snapshots/1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "allowed/link").symlink_to(tmp_path / "secret/b")
    (tmp_path / "allowed/leaving/model.safetensors").symlink_to(tmp_path / "secret/b/config.json")
    (tmp_path / "allowed/inside/model.safetensors").symlink_to(tmp_path / "allowed/a/config.json")
    (tmp_path / "allowed/adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../../secret/b"}))
    (tmp_path / "allowed/x-00001-of-00002.gguf").write_text("")
    (tmp_path / "allowed/x-00002-of-00002.gguf").symlink_to(tmp_path / "secret/b/config.json")
    (tmp_path / "allowed/y.gguf").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def allows(tree: Path, path: str, rules: tuple[str, ...] | None = ("allowed",), field: str = "path", served: str = "secret/b") -> bool:
    settings = Settings.model_construct(model=ModelSettings(path=str(tree / served)), security=SecuritySettings(model_paths=rules))
    try:
        ModelPaths(settings).check(ModelSettings(**{"path": str(tree / served), field: path.format(tree=tree)}))
    except Forbidden as error:
        assert (error.param, error.code) == (field, "path_not_allowed") and "security.model_paths" in error.message
        return False
    return True


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("{tree}/allowed/a", True),
        ("allowed/a", True),
        ("{tree}/allowed", False),  # it holds a link that leads out
        ("{tree}/allowed/y.gguf", True),
        ("{tree}/allowed/inside", True),
        ("{tree}/allowed/nothing", True),  # the load says that it is not there
        ("{tree}/secret/b", True),  # the settings' own
        ("{tree}/secret", False),
        ("{tree}/allowed/../secret/b", False),
        ("{tree}/allowed/link", False),
        ("{tree}/allowed/leaving", False),
        ("{tree}/allowed/adapter", False),
        ("{tree}/allowed/x-00001-of-00002.gguf", False),
        ("/etc", False),
        ("~/allowed/a", False),
        ("{tree}/allowed/a\n", False),
        ("org/known", False),
        ("org/other:Q4_K_M", False),
        ("http://example.org/model", False),
        ("", False),
    ],
)
def test_only_what_lies_in_the_named_folders_is_loaded(tree: Path, path: str, allowed: bool) -> None:
    served = "secret/b" if path == "{tree}/secret/b" else "allowed/a"
    for field in ("path", "observer", "draft", "calibration", "chat_template") if path else ("path",):
        assert allows(tree, path, field=field, served=served) is allowed, field


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        (None, "{tree}/secret/b/config.json", True),  # the folder of the settings' model
        (None, "{tree}/allowed/a", False),
        (None, "org/known", True),
        (None, "org/other", False),
        (None, "{tree}/cache/models--org--known/snapshots/1", True),
        (("hub",), "org/other", True),
        (("cache",), "org/other", False),
        (("cache",), "org/known:Q8_0", True),
        ((), "org/known", False),
        ((), "{tree}/secret/b/config.json", False),
    ],
)
def test_without_the_setting_it_is_the_folders_of_the_settings_and_the_cache(
    tree: Path, rules: tuple[str, ...] | None, path: str, allowed: bool
) -> None:
    assert allows(tree, path, rules) is allowed
