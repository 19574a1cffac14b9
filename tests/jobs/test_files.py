"""`/v1/files` from the official client, and from one that sends what it should not."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import openai
import pytest
from serving import wait_for
from sqlalchemy import update

from app.errors import BodyTooLarge, NotFound
from app.ledger.files import Files, NewFile
from app.ledger.listing import Page
from app.ledger.tables import files

UPLOAD = {"purpose": "batch"}


def post(hosted, data=b"{}\n", fields=UPLOAD, name="a.jsonl", **headers):
    return httpx.post(f"{hosted.url}/v1/files", data=fields, files={"file": (name, data)}, headers=headers, trust_env=False)


def get(url, **headers):
    return httpx.get(url, headers=headers, trust_env=False)


def on_disk(hosted):
    folder = hosted.folder / "files"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_file_is_uploaded_shown_listed_read_and_deleted(hosted):
    client = hosted.client()
    data = b"".join(b'{"n": %d}\n' % n for n in range(300_000))  # several pieces
    made = client.files.create(file=("my lines.jsonl", data), purpose="batch")
    assert (made.bytes, made.filename, made.purpose, made.status) == (len(data), "my lines.jsonl", "batch", "processed")
    assert made.expires_at - made.created_at == 30 * 86_400
    assert client.files.retrieve(made.id) == made and client.files.wait_for_processing(made.id) == made
    assert hashlib.sha256(client.files.content(made.id).read()).digest() == hashlib.sha256(data).digest()
    assert [file.id for file in client.files.list()] == [made.id]
    assert client.files.delete(made.id).deleted is True
    assert on_disk(hosted) == []
    with pytest.raises(openai.NotFoundError, match="no file"):
        client.files.content(made.id)


def test_files_are_listed_in_pages(hosted):
    made = [hosted.upload({"n": n}).id for n in range(5)]
    client = hosted.client()
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]  # the client asks for page after page
    assert [file.id for file in client.files.list(limit=2, order="asc", after=made[0])] == made[1:]
    page = client.files.list(limit=2).model_dump()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, made[4], made[3])
    assert list(client.files.list(purpose="batch_output")) == []
    with pytest.raises(openai.NotFoundError, match="after"):
        client.files.list(after="file-unknown")
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.files.list(limit=0)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_files_are_deleted_while_they_are_listed_in_pages(hosted, order):
    made = [hosted.upload({"n": n}).id for n in range(5)]
    client = hosted.client()
    seen = []
    for file in client.files.list(limit=2, order=order):
        client.files.delete(file.id)
        seen.append(file.id)
    assert seen == (made if order == "asc" else made[::-1]) and on_disk(hosted) == []


def test_of_deleted_files_a_bounded_number_is_remembered_for_their_owner(table, monkeypatch):
    monkeypatch.setattr("app.ledger.files.MAX_DELETED", 2)
    ledger = Files(table.database)
    ids = [f"file-{n:032}" for n in (1, 2, 3)]
    for id in ids:
        ledger.add(NewFile(id, "alice", 1, "a.jsonl", "batch", 1e6))
        ledger.delete("alice", id, lambda: None)
    assert ledger.listed("alice", Page(1, ids[1]), None).data == ledger.listed("alice", Page(1, ids[2]), None).data == []
    for owner, id in (("alice", ids[0]), ("bob", ids[2])):
        with pytest.raises(NotFound, match="after"):
            ledger.listed(owner, Page(1, id), None)


def test_a_file_belongs_to_its_key(shared):
    made = shared.upload({"n": 1}, name="alice")
    bob = shared.client("bob")
    for ask in (bob.files.retrieve, bob.files.content, bob.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)
    with pytest.raises(openai.BadRequestError, match="no file"):
        bob.batches.create(input_file_id=made.id, endpoint="/v1/completions", completion_window="24h")
    assert shared.client("alice").files.retrieve(made.id).id == made.id
    with pytest.raises(openai.AuthenticationError):
        shared.client().files.list()


def test_only_ids_of_its_own_become_paths(hosted):
    hosted.upload({"n": 1})
    for id in ("..%2Fsecret", "secret", "../secret", "file-" + "0" * 32, "%00", "x" * 65):
        assert httpx.get(f"{hosted.url}/v1/files/{id}/content", trust_env=False).status_code in {400, 404}, id
    for name in ("../../evil.jsonl", "C:\\evil.jsonl", "a\x00b"):
        made = post(hosted, name=name).json()
        assert re.fullmatch(r"file-[0-9a-f]{32}", made["id"]) and "/" not in made["filename"] and "\\" not in made["filename"]
    assert all(re.fullmatch(r"file-[0-9a-f]{32}", name) for name in on_disk(hosted))


def test_files_and_their_folder_are_the_owners_alone(hosted):
    hosted.upload({"n": 1})
    assert {path.stat().st_mode & 0o777 for path in hosted.folder.rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (hosted.folder, hosted.folder / "files")} == {0o700}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "assistants"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"}, "expires_after[seconds]"),
        ({"purpose": "x" * 2000}, "purpose"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_kept(hosted, fields, param):
    answer = post(hosted, fields=fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert on_disk(hosted) == []


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"{}", "multipart/form-data", 415),
        (b"{}", "multipart/form-data; boundary=" + "x" * 300, 415),
        (b"no form", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n", "multipart/form-data; boundary=x", 400),
        (b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc', "multipart/form-data; boundary=x", 400),
        (b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n', "multipart/form-data; boundary=x", 400),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n', "multipart/form-data; boundary=x", 400),
        (b"", "multipart/form-data; boundary=x", 400),
    ],
)
def test_what_is_no_form_is_refused(hosted, content, content_type, status):
    answer = httpx.post(f"{hosted.url}/v1/files", content=content, headers={"Content-Type": content_type}, trust_env=False)
    assert answer.status_code == status and answer.json()["error"]["message"]
    assert on_disk(hosted) == []


def test_a_file_that_is_too_large_is_refused_while_it_comes_in(hosted):
    """A gigabyte, of which the server keeps nothing and says so although the client is still sending."""
    hosted.desk.settings = hosted.settings.jobs.model_copy(update={"max_file_bytes": 2_000_000})
    sent = 0

    def gigabyte():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(1000):
            sent += 1
            yield b"x" * 1_000_000

    try:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = httpx.post(f"{hosted.url}/v1/files", content=gigabyte(), headers=headers, timeout=60, trust_env=False)
    finally:
        hosted.desk.settings = hosted.settings.jobs
    assert answer.status_code == 413 and "jobs.max_file_bytes" in answer.json()["error"]["message"]
    assert sent < 1000 and on_disk(hosted) == []


def test_what_a_key_may_store_is_bounded(shared):
    shared.desk.settings = shared.settings.jobs.model_copy(update={"max_stored_bytes": 1024})
    try:
        shared.upload({"n": "x" * 900}, name="alice")
        with pytest.raises(openai.APIStatusError, match=r"jobs\.max_stored_bytes"):
            shared.upload({"n": "x" * 900}, name="alice")
        shared.upload({"n": "x" * 900}, name="bob")
    finally:
        shared.desk.settings = shared.settings.jobs


def test_files_that_come_at_the_same_time_share_what_their_key_may_store(shared):
    """Each of the three fits alone, and has begun before another one is kept."""
    shared.desk.settings = shared.settings.jobs.model_copy(update={"max_stored_bytes": 1024})
    form = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    form += b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'

    begun = []

    def body():
        yield form
        wait_for(lambda: sum(name.endswith(".part") for name in on_disk(shared)) == 3 or begun)
        begun.append(True)
        yield b"x" * 900 + b"\r\n--b--\r\n"

    def upload():
        headers = {"content-type": "multipart/form-data; boundary=b", "authorization": f"Bearer {shared.keys['alice']}"}
        return httpx.post(f"{shared.url}/v1/files", content=body(), headers=headers, trust_env=False, timeout=60)

    try:
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(upload) for _ in range(3)]
            answers = [each.result() for each in waiting]
    finally:
        shared.desk.settings = shared.settings.jobs
    assert sorted(answer.status_code for answer in answers) == [200, 413, 413]
    assert all("jobs.max_stored_bytes" in answer.text for answer in answers if answer.status_code == 413)
    assert len(on_disk(shared)) == 1


def test_what_is_stored_is_counted_where_a_file_is_added(table):
    ledger = Files(table.database)
    new = NewFile(f"file-{1:032}", "alice", 600, "a.jsonl", "batch", 1e6, most_bytes=1000)
    ledger.add(new)
    with pytest.raises(BodyTooLarge, match="more than 1000 bytes"):
        ledger.add(replace(new, id=f"file-{2:032}", bytes=401))
    ledger.add(replace(new, id=f"file-{3:032}", bytes=400))
    ledger.add(replace(new, id=f"file-{4:032}", most_bytes=None))  # of a worker
    ledger.add(replace(new, id=f"file-{5:032}", owner="bob"))
    assert (ledger.stored_bytes("alice"), ledger.stored_bytes("bob")) == (1600, 600)


def test_a_full_disk_is_said(hosted, monkeypatch):
    monkeypatch.setattr("app.ledger.folder.Draft.write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    answer = post(hosted)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert "jobs.folder: No space left on device" in answer.json()["error"]["message"]
    assert on_disk(hosted) == []


def test_an_expired_file_is_gone(hosted):
    made = hosted.upload({"n": 1})
    with hosted.database.transaction() as connection:
        connection.execute(update(files).values(expires=1.0))
    with pytest.raises(openai.NotFoundError):
        hosted.client().files.retrieve(made.id)
    assert list(hosted.client().files.list()) == []


def test_a_file_whose_content_is_gone_from_the_disk_says_so(hosted, caplog):
    made = hosted.upload({"n": 1})
    (hosted.folder / "files" / made.id).unlink()
    caplog.clear()
    with pytest.raises(openai.NotFoundError, match="is gone from the server's disk") as caught:
        hosted.client().files.content(made.id)
    assert caught.value.code == "file_content_gone" and hosted.client().files.retrieve(made.id) == made
    said = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1 and said[0].exc_info is None and made.id in said[0].getMessage()
    assert hosted.client().files.delete(made.id).deleted


@pytest.mark.parametrize("header", ["bytes=abc", "bytes=", "items=0-1", "0-1", "bytes=4-2"])
def test_a_range_that_cannot_be_read_is_ignored(header, hosted):
    made = hosted.upload({"n": 1})
    answer = get(f"{hosted.url}/v1/files/{made.id}/content", Range=header)
    assert (answer.status_code, answer.content) == (200, b'{"n": 1}\n')


def test_a_range_of_a_file_is_sent_and_one_behind_its_end_is_refused(hosted):
    url = f"{hosted.url}/v1/files/{hosted.upload({'n': 1}).id}/content"
    part = get(url, Range="bytes=2-4")
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b'n":', "bytes 2-4/9")
    beyond = get(url, Range="bytes=999999999-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */9")
    error = beyond.json()["error"]
    assert (error["code"], error["param"]) == ("range_not_satisfiable", "Range") and "has 9 bytes" in error["message"]


def test_a_file_may_name_its_end(hosted):
    made = hosted.client().files.create(file=("a", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200})
    assert made.expires_at - made.created_at == 7200


def test_the_input_of_an_unfinished_batch_cannot_be_deleted(hosted):
    made = hosted.start({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "max_tokens": 1}})
    with pytest.raises(openai.ConflictError, match="cancel it first"):
        hosted.client().files.delete(made.input_file_id)
    hosted.work()
    assert hosted.client().files.delete(made.input_file_id).deleted


def test_a_worker_is_known_by_its_secret_only(shared):
    made = shared.upload({"n": 1}, name="alice")
    url = f"{shared.url}/v1/files/{made.id}/content"
    secret = (shared.folder / "secret").read_text() if (shared.folder / "secret").exists() else shared.new_worker()._secret

    def ask(path, secret, owner):
        return httpx.get(path, headers={"Authorization": f"Bearer {secret}", "X-Litmus-Owner": owner}, trust_env=False)

    assert ask(url, secret, "alice").status_code == 200
    assert ask(url, secret, "bob").status_code == 404  # only on behalf of the owner
    assert ask(url, "wrong", "alice").status_code == 401
    assert ask(url, shared.keys["bob"], "alice").status_code == 401
    gone = ask(url, secret, "carol")
    assert (gone.status_code, gone.json()["error"]["code"]) == (401, "owner_gone")
    assert ask(f"{shared.url}/v1/batches", secret, "alice").status_code == 403
    assert ask(f"{shared.url}/slots", secret, "alice").status_code == 403


def test_files_without_a_row_and_expired_ones_are_removed(hosted):
    import asyncio
    import os

    kept, old = hosted.upload({"n": 1}), hosted.upload({"n": 2})
    with hosted.database.transaction() as connection:
        connection.execute(update(files).where(files.c.id == old.id).values(expires=1.0))
    lost = hosted.folder / "files" / f"file-{'a' * 32}"
    unfinished = hosted.folder / "files" / f"file-{'b' * 32}.part"
    fresh = hosted.folder / "files" / f"file-{'c' * 32}"
    for path in (lost, unfinished, fresh):
        path.write_text("x")
    for path in (lost, unfinished):
        os.utime(path, (1, 1))

    async def once():
        task = asyncio.create_task(hosted.desk.clean())
        while lost.exists() or unfinished.exists() or (hosted.folder / "files" / old.id).exists():
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(once(), 60))
    assert on_disk(hosted) == sorted([kept.id, fresh.name])


def test_an_unknown_field_is_left_out_and_named(hosted):
    answer = post(hosted, fields={**UPLOAD, "colour": "red", "size": "x" * 1024})
    assert (answer.status_code, answer.headers["x-litmus-ignored"]) == (200, "colour, size") and len(on_disk(hosted)) == 1
    assert post(hosted, fields={**UPLOAD, "colour": "x" * 1025}).json()["error"]["param"] == "colour"
    described = httpx.get(f"{hosted.url}/openapi.json", trust_env=False).json()["paths"]["/v1/files"]["post"]["requestBody"]["content"]
    assert "additionalProperties" not in described["multipart/form-data"]["schema"]


def test_a_name_comes_back_as_it_was(hosted):
    made = post(hosted, name='a "b" ä%.jsonl').json()
    assert made["filename"] == 'a "b" ä%.jsonl'
    content = httpx.get(f"{hosted.url}/v1/files/{made['id']}/content", trust_env=False)
    assert content.headers["content-disposition"].endswith("a%20%22b%22%20%C3%A4%25.jsonl")


def test_a_name_that_is_too_long_is_said(hosted):
    error = post(hosted, name="a" * 5000).json()["error"]
    assert (error["code"], error["message"]) == (
        "invalid_form",
        "a part of the form has a header of more than 4096 bytes; a shorter file name may do",
    )
    assert len(post(hosted, name="a" * 3000).json()["filename"]) == 255
