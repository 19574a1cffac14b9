"""The program as it is run: a process of its own, with its signals, its log and its exit codes."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import ENVIRONMENT, ROOT

from app.errors import SetupError
from app.settings import read
from tests.ui.telegram.botapi import TOKEN, Json, Refusal
from tests.ui.telegram.conftest import World, reset, until
from ui.telegram.__main__ import main
from ui.telegram.answers import CUT

KEY = "the-key-of-the-bot"
SECRETS = (TOKEN, TOKEN.partition(":")[2], KEY, "Ann-with-a-name", "HOLD", "Quickly", "7919")


@contextmanager
def program(world: World, folder: Path, drain_s: float) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """With the log at its most talkative."""
    variables = {"TOKEN": TOKEN, "KEY": KEY, "SERVER": world.litmus.url, "API": world.telegram.url, "DRAIN_S": str(drain_s)}
    environment = {**ENVIRONMENT, **{f"LITMUS_TELEGRAM__{name}": value for name, value in variables.items()}}
    command = [sys.executable, "-m", "ui.telegram", "--server.log_level", "debug"]
    log = folder / "log"
    with log.open("wb") as out, subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=out) as process:
        try:
            yield process, log
        finally:
            process.kill()


def test_sigterm_finishes_answers_says_which_it_cut_and_the_log_has_no_secret(world: World, tmp_path: Path):
    """A busy machine may be too slow for the shorter time."""

    async def run(drain_s: float) -> str:
        with program(world, tmp_path, drain_s) as (process, log):
            await until(lambda: world.telegram.of("setMyCommands") or process.poll() is not None, 60)
            for user in (7, 7919):
                world.telegram.write(user, "/mode chat")
                await world.replies(user, 1)
            world.telegram.write(7, "HOLD on")
            await until(lambda: "You said:" in world.telegram.frames(7))
            world.litmus.answer = "Quickly, and then the rest. " * 2
            world.litmus.wait_s = 0.1
            world.telegram.write(7919, "Quickly")
            await until(lambda: len(world.litmus.requests) == 2)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 60) == 0
            return log.read_text()

    lines = asyncio.run(run(1))
    if "answers that were cut: 2" in lines:
        reset(world.telegram)
        reset(world.litmus)
        lines = asyncio.run(run(20))
    assert world.telegram.sent(7)[1:] == [f"You said:\n\n{CUT}"]
    assert world.telegram.sent(7919)[1:] == [str(world.litmus.answer).strip()]
    assert "the bot is ready" in lines and "ERROR" not in lines and "answers that were cut: 1" in lines
    assert not [secret for secret in SECRETS if secret in lines], lines
    assert world.litmus.keys == [f"Bearer {KEY}"] * 2


@pytest.fixture
def _loop() -> Iterator[None]:
    """For `main`, which closes it."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    yield
    asyncio.set_event_loop(None)


@pytest.mark.usefixtures("_loop")
def test_a_token_that_telegram_does_not_know_exits_with_2_and_is_not_shown(world: World, monkeypatch, caplog):
    monkeypatch.setattr("ui.telegram.log.set_up", lambda *_: None)  # it would take the log from the test
    monkeypatch.setattr(sys, "argv", ["ui.telegram", "--telegram.api", world.telegram.url])
    monkeypatch.setenv("LITMUS_TELEGRAM__TOKEN", "1:a-wrong-token")
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2 and "Telegram does not know this token" in caplog.messages[-1]
    assert not [record for record in caplog.records if record.name.startswith("ui") and "a-wrong-token" in record.getMessage()]


@pytest.mark.usefixtures("_loop")
def test_a_token_that_telegram_refuses_later_exits_with_2_and_leaves_no_bot_that_hears_nobody(world: World, monkeypatch, caplog):
    def refuse(method: str, parameters: Json) -> None:
        if method == "getUpdates":
            raise Refusal(401, "Unauthorized")

    world.telegram.refuse = refuse
    monkeypatch.setattr("ui.telegram.log.set_up", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["ui.telegram", "--telegram.api", world.telegram.url])
    monkeypatch.setenv("LITMUS_TELEGRAM__TOKEN", TOKEN)
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2 and "Telegram does not know this token" in caplog.messages[-1]
    assert world.telegram.of("setMyCommands")


@pytest.mark.parametrize(
    "arguments", [["--telegram.token", "1:secret"], ["--telegram.key=secret"], ["--telegram", '{"token": "1:secret"}']], ids=str
)
def test_secrets_on_the_command_line_are_refused_unseen(arguments: list[str]):
    with pytest.raises(SetupError, match="LITMUS_TELEGRAM__") as raised:
        read(arguments, program="ui.telegram")
    assert "1:secret" not in raised.value.message


def test_what_is_no_token_is_refused_unseen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITMUS_TELEGRAM__TOKEN", "not a token at all")
    with pytest.raises(SetupError, match=r"telegram\.token.*@BotFather") as raised:
        read([], program="ui.telegram")
    assert "not a token at all" not in raised.value.message
