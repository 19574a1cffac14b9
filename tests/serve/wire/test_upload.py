"""A form that comes in pieces of any size. The route with it: tests/jobs/test_files.py."""

import pytest

from app.errors import InvalidRequest
from serve.wire.ignored import collected_in
from serve.wire.upload import Form

PARTS = (
    b'--b\r\nContent-Disposition: form-data; name="colour"; filename="c"\r\n\r\nred\r\n',
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a%22%0A%2522\\"b"\r\n\r\n{}\r\n--b--\r\n',
)


def read(*parts, size=7):
    """The form, what was left out of it, and its file."""
    left_out, data, file = [], b"".join(parts), bytearray()
    form = Form("multipart/form-data; boundary=b", frozenset({"file", "purpose"}), file.extend)
    with collected_in(left_out):
        for start in range(0, len(data), size):
            form.write(data[start : start + size])
    form.check_whole()
    return form, left_out, bytes(file)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_unknown_part_is_left_out_with_all_that_it_has(size):
    form, left_out, file = read(*PARTS, size=size)
    assert (form.fields, left_out, file) == ({"purpose": "batch"}, ["colour"], b"{}")


def test_where_nothing_may_be_left_out_it_is_refused():
    form = Form("multipart/form-data; boundary=b", frozenset({"file"}), bytearray().extend)
    with collected_in(None), pytest.raises(InvalidRequest, match="colour: unknown parameter") as refused:
        form.write(PARTS[0])
    assert (refused.value.param, refused.value.code) == ("colour", "unknown_parameter")


def test_a_name_is_decoded_once():
    assert read(*PARTS)[0].filename == 'a"%2522"b'
    starred = b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename*=utf-8''a%2522\r\n\r\n{}\r\n--b--\r\n"
    assert read(starred)[0].filename == "a%22"


@pytest.mark.parametrize("size", [7, 100_000])
def test_a_header_that_is_too_long_is_said(size):
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n' % (b"x" * 5000)
    with pytest.raises(InvalidRequest, match="a header of more than 4096 bytes"):
        read(part, size=size)
