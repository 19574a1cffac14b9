import pytest

from ui.telegram.document import Unreadable, check_name, check_size, decode

TEXT = "Ein Füchslein traf eine Krähe.\r\n„Guten Tag“, sagte es."
RUSSIAN = "Однажды лиса встретила ворону."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_a_text_is_read_in_any_of_the_encodings(encoding: str):
    assert decode(TEXT.encode(encoding)) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_the_byte_order_mark_says_which_end_comes_first(encoding: str):
    assert decode(("\ufeff" + RUSSIAN).encode(encoding)) == RUSSIAN


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RUSSIAN.encode("cp1251"), "how this file is encoded"),
        (b"\x81\x8d\x8f", "how this file is encoded"),
        (b"PK\x03\x04\x00\x00", "plain text"),
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xff\xfea", "plain text|encoded"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(content: bytes, reason: str):
    with pytest.raises(Unreadable, match=reason):
        decode(content)


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.b.txt"])
def test_names_that_are_taken(name: str):
    check_name(name)


@pytest.mark.parametrize("name", ["a.pdf", "txt", "a.txt.exe", "", None])
def test_names_that_are_refused(name: str | None):
    with pytest.raises(Unreadable, match=".txt files only"):
        check_name(name)


def test_the_bound_is_inclusive():
    check_size(10, 10)
    with pytest.raises(Unreadable, match="11 bytes.*10 bytes"):
        check_size(11, 10)
