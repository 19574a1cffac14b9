"""Bytes that are text in some encoding, and bytes that are none."""

import pytest

from app.plaintext import NotText, UnknownEncoding, decode, has_controls

TEXT = "A café, “crowded”.\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_a_text_is_read_in_any_of_the_encodings(encoding: str) -> None:
    assert decode(TEXT.encode(encoding)) == TEXT


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


def test_a_stray_control_character_of_utf8_is_kept() -> None:
    assert decode(b"a\x02b") == "a\x02b" and has_controls("a\x02b") and not has_controls(TEXT)
