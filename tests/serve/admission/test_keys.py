"""Keys: their lines, the file that changes, the command that makes them."""

import io
import logging
import os
from pathlib import Path

import pytest

from app.errors import SetupError
from serve.admission.keys import Keys, digest_of, new_key, parse_keys
from serve.keys import main

ALICE, ROOT, LATE = "alice-" + "a" * 40, "root-" + "r" * 40, "late-" + "l" * 40


def line(name: str, secret: str, role: str = "user") -> str:
    return f"{name} {role} sha256:{digest_of(secret).hex()}"


def write(path: Path, *lines: str, at_s: int) -> None:
    """`at_s`: the time of the change, as two tests may write within the clock's resolution."""
    path.write_text("\n".join(lines) + "\n")
    os.utime(path, (at_s, at_s))


def test_a_key_is_found_by_its_secret_only(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# keys\n\n{line('root', ROOT, 'admin')}\n")
    keys = Keys([line("alice", ALICE)], str(file))
    assert [(key.name, key.role) for key in (keys.find(ALICE), keys.find(ROOT)) if key] == [("alice", "user"), ("root", "admin")]
    for wrong in ("", ALICE[:-1], ALICE + " ", digest_of(ALICE).hex(), "\ud800", "é"):
        assert keys.find(wrong) is None


def test_the_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    write(file, line("alice", ALICE), at_s=1)
    keys = Keys((), str(file))
    write(file, line("late", LATE), at_s=2)
    assert keys.find(ALICE) is None and keys.find(LATE) is not None
    with caplog.at_level(logging.ERROR):
        write(file, line("alice", ALICE), f"alice user {ALICE}", at_s=3)
        assert [keys.find(ALICE), getattr(keys.find(LATE), "name", None)] == [None, "late"]
        file.unlink()
        assert keys.find(LATE) is not None and keys.find(LATE) is not None
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"{file}, line 2: this is no key",
        f"setting security.keys_file: {file} cannot be read (No such file or directory)",
    ]
    assert "until this is put right" in caplog.text and ALICE not in caplog.text
    write(file, "# nobody", at_s=4)
    assert keys.find(LATE) is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["alice"], "line 1: this is no key"),
        (["", f"alice user {ALICE}"], "line 2: this is no key"),
        ([line("alice", ALICE, "boss")], "role is user or admin"),
        ([line("a b", ALICE)], "no key"),
        ([line("alice", ALICE), line("bob", ALICE)], "line 2: this key was named before, for alice"),
    ],
)
def test_a_wrong_line_is_named_and_not_quoted(lines: list[str], says: str) -> None:
    with pytest.raises(SetupError) as refused:
        parse_keys(lines, "line")
    assert says in refused.value.message and ALICE not in refused.value.message


def test_without_any_key_or_file_there_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# later\n")
    for path, says in (("keys", "holds no key"), ("nowhere", "setting security.keys_file: .*cannot be read"), ("", "cannot be read")):
        with pytest.raises(SetupError, match=says):
            Keys((), str(tmp_path / path))


def test_two_new_keys_differ_and_are_not_in_their_lines() -> None:
    (one, key), (other, _) = new_key("alice", "admin"), new_key("alice", "admin")
    assert one != other and len(one) > 40 and one not in key.line
    assert parse_keys([key.line], "line") == (key,) and key.digest == digest_of(one)


def test_the_command_makes_a_key_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    assert main(["new", "--name", "alice", "--file", str(file)]) == 0
    assert main(["new", "--name", "root", "--role", "admin", "--file", str(file)]) == 0
    secrets = [part for part in capsys.readouterr().out.split() if part.startswith("litmus-")]
    found = [Keys((), str(file)).find(secret) for secret in secrets]
    assert [(key.name, key.role) for key in found if key] == [("alice", "user"), ("root", "admin")]
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any(secret in file.read_text() for secret in secrets)


def test_a_line_is_made_of_a_key_that_is_there_already(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(ALICE + "\n"))
    assert main(["line", "--name", "alice"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == line("alice", ALICE)
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert main(["line", "--name", "alice"]) == 2
    assert capsys.readouterr().err == "litmus: the key has 5 characters; it must have at least 32, and be random\n"


def test_the_help_says_all_that_an_admin_may_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["new", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(part in said for part in ("/slots", "/metrics", "/overview", "load and unload models and adapters"))
