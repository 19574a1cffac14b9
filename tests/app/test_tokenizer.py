from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import InvalidRequest, SetupError
from app.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer(str(tiny_folder))


def test_text_comes_back(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(list(tokenizer.encode("naïve 猫 \U0001f600", "prompt"))) == "naïve 猫 \U0001f600"


def test_offsets_point_at_characters_and_control_tokens_are_read_as_text(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.read("ab</s>", "input")
    assert encoded.ids[0] == 0
    assert encoded.offsets[0] == (0, 0)
    assert "".join("ab</s>"[start:end] for start, end in encoded.offsets) == "ab</s>"
    assert 1 not in encoded.ids


def test_a_chat_is_rendered_by_the_models_template(tokenizer: Tokenizer) -> None:
    ids = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert ids[0] == 0
    assert tokenizer.decode(list(ids)) == "u:hi"


@pytest.mark.parametrize("call", [lambda t: t.encode("a\ud800", "x"), lambda t: t.read("\udc00", "x")])
def test_half_a_surrogate_pair_is_refused_by_name(tokenizer: Tokenizer, call: object) -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate") as refused:
        call(tokenizer)  # type: ignore[operator]
    assert refused.value.param == "x"


def test_a_model_without_a_template_does_not_chat(tokenizer: Tokenizer) -> None:
    bare = Tokenizer.__new__(Tokenizer)
    bare.base, bare.chats = tokenizer.base, False
    with pytest.raises(InvalidRequest, match="no chat template"):
        bare.chat([{"role": "user", "content": "hi"}])


def test_a_folder_without_a_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SetupError, match="no tokenizer"):
        Tokenizer(str(tmp_path))


def test_chats_and_texts_read_at_once_do_not_change_each_other(tokenizer: Tokenizer) -> None:
    """How control tokens are read is a state of the library's tokenizer, not an argument of the call."""

    def chat() -> tuple[int, ...]:
        return tokenizer.encode("ab</s>", "prompt")

    def read() -> tuple[int, ...]:
        return tokenizer.read("ab</s>", "input").ids

    wanted = {chat: chat(), read: read()}
    assert wanted[chat] != wanted[read]
    with ThreadPoolExecutor(4) as pool:
        found = [(call, pool.submit(call)) for call in [chat, read] * 2000]
        assert all(future.result() == wanted[call] for call, future in found)
