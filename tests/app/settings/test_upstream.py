"""Which settings an upstream may have, and what is said of the others."""

import json
from pathlib import Path

import pytest

from app.errors import SetupError
from app.settings import read

FAR = {"upstream": "http://far:1", "name": "far"}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No litmus.yaml and no .env."""
    monkeypatch.chdir(tmp_path)


def further(*models: dict[str, object]) -> list[str]:
    return ["--models", json.dumps(models)]


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://api.example.org/v1", "https://api.example.org"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000"),
        ("http://host/prefix/v1", "http://host/prefix"),
    ],
)
def test_the_url_may_end_with_v1(url: str, base: str) -> None:
    settings = read(["--model.upstream", url, "--model.name", "far"])
    assert (settings.model.upstream, settings.model.served_name, settings.loaded) == (base, "far", {})


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://a", "http://user:password@a", "http://a?key=password", "http://a/v1#b", "http://"]
)
def test_what_is_no_url_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(SetupError, match=r"model\.upstream: this is not the URL of a server") as caught:
        read(["--model.upstream", url, "--model.name", "far"])
    assert "password@" not in caught.value.message and "=password" not in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model.upstream", "http://a"], "a model with an upstream needs a name"),
        (["--model.upstream", "http://a", "--model.name", "n", "--model.slots", "2"], "slots is for a model that is loaded here"),
        (["--model.upstream", "http://a", "--model.name", "n", "--chat-template", "x"], "chat_template is for a model that is loaded here"),
        (["--model.upstream_key", "k"], "upstream_key is only for a model with an upstream"),
        (further({**FAR, "path": "a/b"}), "path is for a model that is loaded here"),
        (further({"name": "far"}), r"models\.0\.path: is required"),
        (further({**FAR, "upstream_key": "$NOT_THERE"}), r"models\.0\.upstream_key: the environment variable NOT_THERE is not set"),
        (further(FAR, {"path": "a/far"}), "two models are named 'far'"),
        (further({"path": "a/far"}, FAR), "two models are named 'far'"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], says: str) -> None:
    with pytest.raises(SetupError, match=says):
        read(arguments)


def test_several_upstreams_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_FAR", "of-the-other-server")
    settings = read(further({**FAR, "upstream_key": "$KEY_OF_FAR"}, {"upstream": "http://farther:1", "upstream_model": "far"}))
    assert [model.served_name for model in settings.models] == ["far", "far"] and list(settings.loaded) == ["model"]
    key = settings.models[0].upstream_key
    assert key is not None and key.get_secret_value() == "of-the-other-server" and "of-the-other-server" not in repr(settings)
