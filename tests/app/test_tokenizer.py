from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from app.errors import InvalidRequest, SetupError
from app.tokenizer import Encoded, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer(str(tiny_folder))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """In the manner of Llama 2: blanks are part of the words behind them, unknown characters fall back to bytes."""
    words = ["<s>", "</s>", "\u2581", "a", "b", "\u2581a", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw = Raw(models.BPE(vocab={word: id for id, word in enumerate(words)}, merges=[("\u2581", "a")], byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    folder = tmp_path_factory.mktemp("sentencepiece")
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return Tokenizer(str(folder))


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


TEXTS = ["a b", " a", "na\u00efve \u732b \U0001f600  a\nb "]


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_texts_tokens_are_its_bytes(tokenizer: Tokenizer, sentencepiece: Tokenizer, bundled: Path, text: str) -> None:
    for one in (tokenizer, sentencepiece, Tokenizer(str(bundled))):
        pieces = [one.piece(id) for id in one.read(text, "x", plain=False).ids]
        shown = [piece for piece in pieces if not piece.control]
        assert (shown[0].opening + b"".join(piece.data for piece in shown[1:])).decode() == text


def test_a_token_is_its_text_or_its_bytes(tokenizer: Tokenizer, sentencepiece: Tokenizer) -> None:
    first = tokenizer.piece(tokenizer.encode("\u732b", "x")[1])
    assert (first.text, first.data, first.control) == ("bytes:\\xe7", b"\xe7", False)
    assert (tokenizer.piece(1).text, tokenizer.piece(1).control) == ("</s>", True)
    assert (tokenizer.piece(10_000).text, tokenizer.piece(10_000).data) == ("", b"")
    assert tokenizer.piece(5) is tokenizer.piece(5)
    word = sentencepiece.piece(5)
    assert (word.text, word.data, word.opening) == (" a", b" a", b"a")
    assert sentencepiece.piece(6 + 0xE7).text == "bytes:\\xe7"
    assert (sentencepiece.piece(2).data, sentencepiece.piece(2).opening) == (b" ", b"")


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_begin_where_their_bytes_do(tokenizer: Tokenizer, bundled: Path, text: str) -> None:
    for one in (tokenizer, Tokenizer(str(bundled))):
        encoded, before = one.read(text, "x"), b""
        for id, start in zip(encoded.ids[1:], list(encoded.starts())[1:], strict=True):
            assert start == len(before.decode(errors="ignore"))
            before += one.piece(id).data
        assert before.decode() == text


def test_blanks_left_out_of_offsets_belong_to_the_token_behind_them() -> None:
    assert list(Encoded((9, 1, 2, 3, 9), ((0, 0), (0, 2), (3, 5), (3, 5), (0, 0))).starts()) == [0, 0, 2, 3, 5]


def test_a_word_is_banned_at_a_beginning_and_behind_a_blank(tokenizer: Tokenizer, bundled: Path) -> None:
    assert tokenizer.sequences(" ab", "x") == tokenizer.sequences("ab", "x") == [tokenizer.encode("ab", "x")[1:]]
    whole = Tokenizer(str(bundled))
    bare, inner = whole.sequences("king", "x")
    assert (whole.decode(list(bare)), whole.decode(list(inner))) == ("king", " king")
    assert [whole.decode(list(ids)) for ids in whole.sequences("\n", "x")] == ["\n"]


def test_pieces_asked_for_at_once_are_the_same(tokenizer: Tokenizer) -> None:
    wanted = [tokenizer._piece(id) for id in range(258)]
    tokenizer._pieces.clear()
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(lambda: [tokenizer.piece(id) for id in range(258)]) for _ in range(50)]
        texts = [pool.submit(tokenizer.read, "ab</s>", "input", bool(index % 2)) for index in range(500)]
        assert all(future.result() == wanted for future in found)
        assert {len(future.result().ids) for future in texts} == {4, 7}
