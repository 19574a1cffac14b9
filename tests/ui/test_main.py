import logging
import sys

import pytest

from app.settings import read
from ui.__main__ import expand_short_options, main


def test_short_options_set_the_settings_of_the_page():
    settings = read(expand_short_options(["--server", "http://127.0.0.1:9000", "--port=7999"]), program="ui")
    assert (settings.ui.server, settings.ui.port) == ("http://127.0.0.1:9000", 7999)
    assert settings.server.port == read([]).server.port


def test_long_options_and_values_are_unchanged():
    assert expand_short_options(["--server.host", "0.0.0.0", "--ui.port=7999"]) == ["--server.host", "0.0.0.0", "--ui.port=7999"]


def test_an_invalid_setting_is_logged_and_exits_with_2(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(sys, "argv", ["ui", "--port", "80"])
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert "ui.port" in caplog.text
