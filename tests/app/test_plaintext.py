"""Bytes that are text in some encoding, and bytes that are none."""

import pytest

from app.plaintext import NotText, UnknownEncoding, decode, has_controls, recognize

TEXT = "A café, “crowded”.\r\n"
ESSAY = "The old road ran along the river, and nobody who walked there in autumn forgot the smell of leaves. " * 40
WESTERN = (
    "It’s a “long” word—“or two”…maybe; 20°C at Apple®’s for €5, £3–£4, a naïve rôle in the café. Don´t, don‘t, n×m, 1º, ¿Qué? ½ m² µm",
    "L’été dernier, « où » qu’il allât, Zoë a créé une œuvre… À NOËL, l’ÉTÉ, ÇA VA-T-IL ? Il a été élevé à Nîmes dès sa naissance—là-bas",
    "ÜBER ÄPFEL: „Öl“, ‚süß‘ und »größer« – Äußerungen über Fußgänger kosten 5\xa0€. Übermäßige Größe, Straßenlärm, ÖFFNUNG",
    "É às avós que não há razão; à tarde, lá, só nós. AÇÃO, CORAÇÃO, “você” é irmã. Ó João, põe o pão, 3.ª edição, R$ 5 – já está",
    "È più così, perché è già là: è, è, è. Þú og ég á Íslandi, það er gott, þá fór öll fjölskyldan út. på åen, ærø;",
    "Dell’“arte” e la città, perché l’«opera» è già là; una col·lecció d’«en Joan»; os nºs 1 e 2 estão aí, e a 1ª também não está",
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_a_text_is_read_in_any_of_the_encodings(encoding: str) -> None:
    content = TEXT.encode(encoding)
    assert decode(content) == TEXT and recognize(content)[1] == encoding


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("Однажды".encode("cp1251"), UnknownEncoding),
        (b"\x81\x8d", UnknownEncoding),
        (b"\x89PNG\r\n\x1a\n\xff", NotText),
        ("without a mark".encode("utf-16-le"), NotText),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, kind: type[NotText]) -> None:
    with pytest.raises(NotText) as caught:
        decode(content)
    assert type(caught.value) is kind


@pytest.mark.parametrize("sample", WESTERN)
def test_windows_1252_is_read_whatever_the_language(sample: str) -> None:
    assert decode((ESSAY + sample).encode("cp1252")) == ESSAY + sample


@pytest.mark.parametrize("word", ["café", "été", "it’s", "word—word", "ÉTÉ", "“so”", "à", "wait…what", "€5", "20°"])
def test_one_word_beyond_ascii_does_not_make_an_essay_unreadable(word: str) -> None:
    assert word in decode(f"{ESSAY} {word} {ESSAY}".encode("cp1252"))


@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        ("The word 中文 and the word 你好 are common.", "gbk"),
        ("One character, 的, is the most common.", "gbk"),
        ("He said “no”, and 他 said 不知道。", "gbk"),
        ("Her résumé lay in the café; a naïve façade.", "cp437"),
        ("A señor went in.", "cp437"),
        ("They say こんにちは and テスト there.", "shift-jis"),
        ("One word, Привет, is known.", "cp1251"),
        ("A “quoted” café.", "utf-8"),
    ],
)
def test_a_few_words_in_another_encoding_in_a_long_text_are_refused(words: str, encoding: str) -> None:
    broken = b" \xff" if encoding == "utf-8" else b""
    with pytest.raises(UnknownEncoding):
        decode(ESSAY.encode() + words.encode(encoding) + broken)


def test_a_stray_control_character_of_utf8_is_kept() -> None:
    assert decode(b"a\x02b") == "a\x02b" and has_controls("a\x02b")
    assert not has_controls(TEXT + "\t\x85\x1a")
