"""Banned users and blocked content: the file, what matches, and that nothing is quoted."""

import os
from pathlib import Path
from typing import Any

import pytest
from admitting import ALICE, CHAT, HELLO, LINES, MESSAGES, bearer, serving

from app.errors import Forbidden, SetupError
from app.settings import SecuritySettings
from app.tokenizer import Tokenizer
from serve.admission.bans import Bans, parse_bans, texts_of

FILE = "users: [mallory]\nkeys: [stolen]\nphrases: ['Glass house', rm]\npatterns: ['secret-\\d+', 'A(.)\\1A']\n"


@pytest.fixture
def bans(tmp_path: Path) -> Bans:
    (tmp_path / "bans.yaml").write_text(FILE)
    return Bans(SecuritySettings(banned_users=("eve",), bans_file=str(tmp_path / "bans.yaml")))


def test_users_of_settings_and_file_and_keys_of_the_file(bans: Bans, tmp_path: Path) -> None:
    assert [user in bans for user in ("eve", "mallory", "Mallory", "stolen", None)] == [True, True, False, False, False]
    with pytest.raises(Forbidden, match="this key may not use this server"):
        bans.check_key("stolen")
    bans.check_key("mallory")
    (tmp_path / "bans.yaml").write_text("users: [trudy]\n")
    os.utime(tmp_path / "bans.yaml", (1, 1))
    assert [user in bans for user in ("eve", "mallory", "trudy")] == [True, False, True] and not bans.block_content
    bans.check_key("stolen")


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "those in a GLASS\n  house"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a glass"}, {"type": "text", "text": "house"}]}]},
        {"prompt": ["fine", "Glass\u200b house"]},
        {"text": "a \uff27\uff4c\uff41\uff53\uff53 \uff48\uff4f\uff55\uff53\uff45."},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "SECRET-12"}]}]},
        {"system": "xx ABBA", "messages": []},
        {"texts": ["then rm, they said"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a gla"}, {"type": "text", "text": "ss house"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": '{"a": "\\u0067lass house"}'}}]}]},
        {"structured_outputs": {"json": '{"const": "glass\\u0020house"}'}},
        {"guided_json": '{"properties": {"\\u0067lass house": {}}}'},
        {"json_schema": '{"enum": ["a \\u0067lass house"]}'},
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "input": {"user": "a glass house"}}]}]},
        {"tools": [{"function": {"parameters": {"properties": {"glass house": {"type": "string"}}}}}]},
    ],
)
def test_blocked_content_is_found_in_every_text_and_not_quoted(bans: Bans, body: dict[str, object]) -> None:
    assert bans.block_content
    with pytest.raises(Forbidden) as refused:
        bans.check_content(body)
    assert (refused.value.code, refused.value.message) == (
        "content_blocked",
        "this request contains content that this server does not serve",
    )


@pytest.mark.parametrize(
    "text", ["a glasshouse", "glass houses", "the house of glass", "harm and arm", "secret-x", "abca", "", "g l a s s house"]
)
def test_other_content_is_served(bans: Bans, text: str) -> None:
    bans.check_content({"prompt": text, "n": 1, "stop": None, "model": "rm"})


def test_a_deep_body_is_read_to_its_end() -> None:
    deep: object = "bottom"
    for _ in range(20_000):
        deep = [deep]
    assert list(texts_of({"a": deep, "b": ["x", {"c": "y"}]})) == ["bottom", "x", "y", "a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("users: [", "is not YAML (line 1)"),
        ("user: [x]", "bans: user: Extra inputs are not permitted; the file has the lists users, keys, phrases, patterns"),
        ("users: x", "bans: users: Input should be a valid list"),
        ("users: [12]", "bans: users.0: Input should be a valid string"),
        ("- x", "bans: the whole file"),
        ("phrases: [a, ' ']", "phrases.1 is blank"),
        ("patterns: [a, '(']", "patterns.1 is not a regular expression"),
        ("patterns: ['x*']", "patterns.0 matches an empty text"),
    ],
)
def test_a_wrong_file_is_explained(text: str, says: str) -> None:
    with pytest.raises(SetupError) as refused:
        parse_bans(text, "bans")
    assert says in refused.value.message


def test_an_empty_file_bans_nobody() -> None:
    assert parse_bans("# later\n", "bans").users == frozenset()


def test_tokens_for_an_adapter_are_read_by_its_bases_tokenizer(bans: Bans, tiny_folder: Path) -> None:
    class Silent:
        def __len__(self) -> int:
            return 300

        def decode(self, ids: list[int]) -> str:
            return ""

    tokenizer = Tokenizer(str(tiny_folder))
    bans.tokenizers = {"default": Silent(), "tiny": tokenizer}  # type: ignore[dict-item]
    body = {"model": "tuned", "prompt": list(tokenizer.encode("a glass house b", "prompt"))}
    bans.check_content(body)
    bans.loaded_name = lambda name: {"tuned": "tiny"}.get(name, name)
    with pytest.raises(Forbidden):
        bans.check_content(body)
    with pytest.raises(Forbidden):
        bans.check_content({**body, "prompt": [float(id) for id in body["prompt"]]})


def test_a_prompt_of_tokens_and_numbers_is_left_to_its_route(bans: Bans, tiny_folder: Path) -> None:
    bans.tokenizers["tiny"] = Tokenizer(str(tiny_folder))
    bans.check_content({"prompt": [[1], 5]})


def test_bans_by_file(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "bans.yaml"
    file.write_text("users: [mallory]\nphrases: [glass house]\n")
    with serving(tiny_folder, keys=LINES, bans_file=str(file)) as client:

        def code(path: str = CHAT, **fields: Any) -> str | None:
            answer = client.post(path, json={**HELLO, **fields}, headers=bearer(ALICE))
            assert answer.status_code == (403 if "error" in answer.json() else 200)
            return answer.json().get("error", {}).get("code")

        assert (code(), code(user="mallory")) == (None, "user_banned")
        assert code(messages=[{"role": "user", "content": "in a GLASS house"}]) == "content_blocked"
        answer = client.post("/v1/score", json={"text": "in a glass house"}, headers=bearer(ALICE))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "content_blocked") and "glass" not in answer.text
        tokens = client.post("/tokenize", json={"prompt": "in a glass hous"}, headers=bearer(ALICE)).json()["tokens"]
        last = client.post("/tokenize", json={"prompt": "e", "add_special_tokens": False}, headers=bearer(ALICE)).json()["tokens"]
        for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input"), ("/detokenize", "tokens")):
            answer = client.post(path, json={field: [*tokens, *last]}, headers=bearer(ALICE))
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "content_blocked")
            assert client.post(path, json={field: tokens}, headers=bearer(ALICE)).status_code != 403
        answer = client.post("/v1/completions", json={"prompt": [[3, 4], [*tokens, 10**9, *last]]}, headers=bearer(ALICE))
        assert answer.status_code == 403
        error = client.post(MESSAGES, json={**HELLO, "system": "glass house"}, headers=bearer(ALICE)).json()["error"]
        assert error["type"] == "permission_error"
        file.write_text("keys: [alice]\n")
        os.utime(file, (1, 1))
        assert code(user="mallory") == "key_banned"
