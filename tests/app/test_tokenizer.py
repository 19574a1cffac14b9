import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Raw
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.errors import InvalidRequest, SetupError
from app.tokenizer import Encoded, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer(str(tiny_folder))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Like Llama 2's: a space belongs to the token of the word after it, unknown characters fall back to bytes."""
    words = ["<s>", "</s>", "\u2581", "a", "b", "\u2581a", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw = Raw(models.BPE(vocab={word: id for id, word in enumerate(words)}, merges=[("\u2581", "a")], byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    folder = tmp_path_factory.mktemp("sentencepiece")
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return Tokenizer(str(folder))


def test_encode_and_decode_round_trip(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(list(tokenizer.encode("naïve 猫 \U0001f600", "prompt"))) == "naïve 猫 \U0001f600"


def test_offsets_point_at_characters_and_special_token_names_are_plain_text(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode_with_offsets("ab</s>", "input")
    assert encoded.ids[0] == 0
    assert encoded.offsets[0] == (0, 0)
    assert "".join("ab</s>"[start:end] for start, end in encoded.offsets) == "ab</s>"
    assert 1 not in encoded.ids


def test_a_chat_is_rendered_by_the_models_template(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert ids[0] == 0
    assert tokenizer.decode(list(ids)) == "u:hi"


@pytest.mark.parametrize("call", [lambda t: t.encode("a\ud800", "x"), lambda t: t.encode_with_offsets("\udc00", "x")])
def test_a_lone_surrogate_is_refused_and_the_parameter_named(tokenizer: Tokenizer, call: object) -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate") as refused:
        call(tokenizer)  # type: ignore[operator]
    assert refused.value.param == "x"


def test_a_model_without_a_template_does_not_chat(tiny_folder: Path) -> None:
    bare = Tokenizer(str(tiny_folder))
    bare.base.chat_template = None
    with pytest.raises(InvalidRequest, match="no chat template"):
        bare.encode_chat([{"role": "user", "content": "hi"}])


def test_a_folder_without_a_tokenizer_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SetupError, match="no tokenizer"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer.json", "{}", "KeyError: 'added_tokens'"),
        ("tokenizer.json", '{"added_tokens": []}', "Exception: "),  # of the library tokenizers
        ("tokenizer_config.json", "[]", "AttributeError: "),
    ],
)
def test_a_tokenizer_of_another_form_is_a_setup_error(tiny_folder: Path, tmp_path: Path, file: str, content: str, reason: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "wrong")
    (folder / file).write_text(content)
    with pytest.raises(SetupError) as caught:
        Tokenizer(str(folder))
    assert caught.value.message.startswith(f"{folder}: its tokenizer.json or tokenizer_config.json has not the form of one ({reason}")


def test_concurrent_encodings_of_both_kinds_do_not_disturb_each_other(tokenizer: Tokenizer) -> None:
    """transformers keeps `split_special_tokens` as a state of the shared tokenizer, so two threads could overwrite it."""

    def keep_special() -> tuple[int, ...]:
        return tokenizer.encode("ab</s>", "prompt")

    def split_special() -> tuple[int, ...]:
        return tokenizer.encode_with_offsets("ab</s>", "input").ids

    expected = {keep_special: keep_special(), split_special: split_special()}
    assert expected[keep_special] != expected[split_special]
    with ThreadPoolExecutor(4) as pool:
        futures = [(call, pool.submit(call)) for call in [keep_special, split_special] * 2000]
        assert all(future.result() == expected[call] for call, future in futures)


TEXTS = ["a b", " a", "na\u00efve \u732b \U0001f600  a\nb "]


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_the_tokens_add_up_to_the_text(tokenizer: Tokenizer, sentencepiece: Tokenizer, bundled: Path, text: str) -> None:
    for each in (tokenizer, sentencepiece, Tokenizer(str(bundled))):
        pieces = [each.piece(id) for id in each.encode_with_offsets(text, "x", split_special_tokens=False).ids]
        plain = [piece for piece in pieces if not piece.special]
        assert (plain[0].data_at_start + b"".join(piece.data for piece in plain[1:])).decode() == text


def test_a_piece_has_a_text_or_its_bytes(tokenizer: Tokenizer, sentencepiece: Tokenizer) -> None:
    first = tokenizer.piece(tokenizer.encode("\u732b", "x")[1])
    assert (first.text, first.data, first.special) == ("bytes:\\xe7", b"\xe7", False)
    assert (tokenizer.piece(1).text, tokenizer.piece(1).special) == ("</s>", True)
    assert (tokenizer.piece(10_000).text, tokenizer.piece(10_000).data) == ("", b"")
    assert tokenizer.piece(5) is tokenizer.piece(5)
    word = sentencepiece.piece(5)
    assert (word.text, word.data, word.data_at_start) == (" a", b" a", b"a")
    assert sentencepiece.piece(6 + 0xE7).text == "bytes:\\xe7"
    assert (sentencepiece.piece(2).data, sentencepiece.piece(2).data_at_start) == (b" ", b"")


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_start_where_their_bytes_do(tokenizer: Tokenizer, bundled: Path, text: str) -> None:
    for each in (tokenizer, Tokenizer(str(bundled))):
        encoded, before = each.encode_with_offsets(text, "x"), b""
        for id, start in zip(encoded.ids[1:], list(encoded.token_starts())[1:], strict=True):
            assert start == len(before.decode(errors="ignore"))
            before += each.piece(id).data
        assert before.decode() == text


def test_spaces_left_out_of_offsets_count_to_the_token_after_them() -> None:
    assert list(Encoded((9, 1, 2, 3, 9), ((0, 0), (0, 2), (3, 5), (3, 5), (0, 0))).token_starts()) == [0, 0, 2, 3, 5]


def test_a_word_is_encoded_at_the_start_of_a_text_and_after_a_space(tokenizer: Tokenizer, bundled: Path) -> None:
    assert tokenizer.word_encodings(" ab", "x") == tokenizer.word_encodings("ab", "x") == [tokenizer.encode("ab", "x")[1:]]
    subword = Tokenizer(str(bundled))
    at_start, after_space = subword.word_encodings("king", "x")
    assert (subword.decode(list(at_start)), subword.decode(list(after_space))) == ("king", " king")
    assert [subword.decode(list(ids)) for ids in subword.word_encodings("\n", "x")] == ["\n"]


def test_pieces_read_by_several_threads_are_the_same(tiny_folder: Path) -> None:
    alone, tokenizer = Tokenizer(str(tiny_folder)), Tokenizer(str(tiny_folder))
    expected = [alone.piece(id) for id in range(258)]
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(lambda: [tokenizer.piece(id) for id in range(258)]) for _ in range(50)]
        encodings = [pool.submit(tokenizer.encode_with_offsets, "ab</s>", "input", bool(index % 2)) for index in range(500)]
        assert all(future.result() == expected for future in futures)
        assert {len(future.result().ids) for future in encodings} == {4, 7}


def test_special_tokens_that_mark_calls_and_thoughts_are_shown(bundled: Path, tmp_path: Path) -> None:
    """As Mistral's `[TOOL_CALLS]` and `[THINK]`: without them a call could not be found in an answer."""
    base = AutoTokenizer.from_pretrained(bundled)
    marks = ["[INST]", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"]
    base.add_special_tokens({"additional_special_tokens": [AddedToken(mark, special=True, normalized=False) for mark in marks]})
    base.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}"
        "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}[ARGS]"
        "{{ c.function.arguments | tojson }}{% endfor %}<|end|>{% endif %}{% endfor %}{# [THINK]...[/THINK] #}"
    )
    base.save_pretrained(tmp_path)
    tokenizer = Tokenizer(str(tmp_path))
    text = '[INST][THINK]so[/THINK][TOOL_CALLS]ring[ARGS]{"a": 1}<|end|>'
    ids = tokenizer.encode(text, "text", add_special_tokens=False)
    assert tokenizer.decode(list(ids)) == '[THINK]so[/THINK][TOOL_CALLS]ring[ARGS]{"a": 1}'
    assert tokenizer.decode_with_special_tokens(ids) == text
    pieces = {tokenizer.piece(id).text: tokenizer.piece(id).special for id in ids}
    assert pieces["[INST]"] and pieces["<|end|>"] and not pieces["[TOOL_CALLS]"] and not pieces["[THINK]"]


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% if enable_thinking %}think\n{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]


def test_a_chat_template_of_the_settings_takes_the_place_of_the_models_own(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    own, chat = Tokenizer(str(tiny_folder)).chat, Tokenizer(str(tiny_folder), str(file)).chat
    assert own.render(ASKED, None, True) == "<s>s:Be brief.u:Hello." and own.thinking_switch is None
    assert chat.render(ASKED, None, True) == "[system]Be brief.\n[user]Hello.\n[assistant]"
    assert chat.thinking_switch == "enable_thinking" and "think" in chat.render(ASKED, None, True, {"enable_thinking": True})


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}\n\n{% endif %}", "line 3: Encountered unknown tag 'endif'"),
        ("a\n{{ messages | shout }}", "line 2: No filter named 'shout'"),
        ("{% generation\n %}{% break", "line 2: "),
        (" \n", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_a_template_that_is_none_is_refused_with_its_line(tiny_folder: Path, tmp_path: Path, template: str | None, says: str) -> None:
    file = tmp_path / "chat.jinja"
    if template is not None:
        file.write_text(template)
    with pytest.raises(SetupError) as caught:
        Tokenizer(str(tiny_folder), str(file))
    assert caught.value.message.startswith(f"chat_template: {file}") and says in caught.value.message
