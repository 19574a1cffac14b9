import logging
import sys

import pytest

from app.settings import read
from ui.__main__ import long_names, main


def test_short_names_reach_the_settings_of_the_page():
    settings = read(long_names(["--server", "http://127.0.0.1:9000", "--port=7999"]), program="ui")
    assert (settings.ui.server, settings.ui.port) == ("http://127.0.0.1:9000", 7999)
    assert settings.server.port == read([]).server.port


def test_long_names_and_values_pass_unchanged():
    assert long_names(["--server.host", "0.0.0.0", "--ui.port=7999"]) == ["--server.host", "0.0.0.0", "--ui.port=7999"]


def test_a_wrong_setting_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(sys, "argv", ["ui", "--port", "80"])
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "ui.port" in caplog.text
