"""Names that are no settings, and sources in a form that hides what they say: each is refused by its name."""

import re
from pathlib import Path

import pytest

from app.errors import SetupError
from app.settings import BUNDLED, ModelSettings, read


def test_an_unknown_setting_is_refused_in_every_source_and_the_nearest_named(bare: Path) -> None:
    for option, near in (
        ("--server.prot", "--server.port"),
        ("--slots", "--model.slots"),
        ("--model.cache-tokens", "--model.cache_tokens"),
        ("--prot", "--port"),
        ("--chat_template", "--chat-template"),
        ("--quantise", "--quantize"),
        ("--contxt", "--model.context"),
        ("--host", "--server.host"),
        ("--model-path", "--model.path"),
        ("--quantization", "--quantize"),
        ("--max-model-len", "--model.context"),
        ("--ctx-size", "--model.context"),
        ("-c", "--model.context"),
        ("--max-num-seq", "--model.slots"),
        ("-np", "--model.slots"),
        ("--served-model-name", "--model.name"),
        ("--alias", "--model.aliases"),
        ("--api-key", "--security.keys"),
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


def test_what_is_near_nothing_is_refused_and_a_negative_value_is_one() -> None:
    for option in ("-x", "--metrics"):
        with pytest.raises(SetupError, match=rf"^{option} is no option: docs/settings\.md has all of them$"):
            read(["a/b", option, "1"])
    assert read(["--model.sampling.top_k", "-1"]).model.sampling.top_k == -1


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("LITMUS_PORT", "LITMUS_SERVER__PORT"),
        ("LITMUS_SLOTS", "LITMUS_MODEL__SLOTS"),
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
        (b"queue:\n  timeout_s: 1:30\n", "litmus.yaml, line 2: YAML reads 1:30 as a number to the base of 60"),
        (b"queue: {timeout_s: 1:30.5}\n", "litmus.yaml, line 1: YAML reads 1:30.5"),
        (b"queue: {timeout_s: .inf}\n", "setting queue.timeout_s: Input should be a finite number"),
        (b"limits: {requests_per_minute: true}\n", "setting limits.requests_per_minute: is to be a number, and true is none"),
        (b"jobs: {line_timeout_s: false}\n", "setting jobs.line_timeout_s: is to be a number, and false is none"),
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
