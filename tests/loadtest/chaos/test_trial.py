"""Whole runs against a fake server that has processes of its own: one that takes every disturbance well, and one that takes it badly."""

import json
import sys
from pathlib import Path

import pytest

from loadtest.chaos import __main__ as command
from loadtest.chaos import clients, disturber, trial
from loadtest.chaos import server as servers
from loadtest.chaos.server import OwnServer
from tests.loadtest.undisturbed import first_good

FAKE = Path(__file__).with_name("fake_serve.py")
OPTIONS = trial.Options(clients=4, minutes=0.05, requests=4, tokens=8, max_waiting=8, deadline_s=60)


@pytest.fixture
def run(monkeypatch, tmp_path, free_port, capsys):
    monkeypatch.setattr(trial, "IDLE_S", 0.1)
    monkeypatch.setattr(trial, "SAMPLE_S", 0.2)
    monkeypatch.setattr(servers, "ORPHANS_S", 60.0)
    monkeypatch.setattr(disturber, "HANG_LIMIT_S", 60.0)
    monkeypatch.setattr(disturber, "status_of", lambda http, url: clients.status_of(http, url, 60.0))

    def start(mode):
        monkeypatch.setattr(disturber, "HANG_WATCH_S", 60.0 if mode == "GOOD" else 0.5)  # only a good one notices
        monkeypatch.setattr(disturber, "KILL_WATCH_S", 60.0 if mode == "GOOD" else 1.0)
        server = OwnServer([sys.executable, str(FAKE), mode, str(free_port), str(OPTIONS.max_waiting)], free_port, tmp_path / "log")
        code = command.disturb(OPTIONS, server, None, tmp_path)
        return code, json.loads((tmp_path / "chaos.json").read_text()), capsys.readouterr().out

    return start


def at(found, kind):
    (row,) = [row for row in found["disturbances"] if row["kind"] == kind]
    return row


def test_a_server_that_hides_every_death_meets_every_mark(run):
    code, found, shown = run("GOOD")
    assert (code, found["missed"], found["aborted"]) == (0, [], None), shown
    total = found["all"]
    assert total["sent"] == total["answered"] + total["refused"] + total["failed"] + total["lost"]
    assert (total["equal"], total["different"], total["failed"], total["lost"]) == (total["answered"], 0, 0, 0)
    assert total["answered"] > 6 * OPTIONS.clients, "some of each client between any two disturbances"
    assert found["left"] == 20 and found["comments"] > OPTIONS.clients
    assert found["by_kind"]["burst"]["sent"] == 48 == 4 * found["capacity"] and found["by_kind"]["burst"]["refused"] > 0
    caught = [at(found, kind)["in_flight"] for kind in ("kill", "hang", "kill on a full disk")]
    assert all(one["equal"] == one["sent"] for one in caught) and sum(one["sent"] for one in caught) > 0
    for kind in ("kill", "hang", "kill on a full disk"):
        assert 0 < at(found, kind)["not_ready_s"] < at(found, kind)["served_again_s"] + 0.01, kind  # as that is rounded
    start = at(found, "start on a full disk")
    assert (start["exit_code"], start["orphans"], start["port_free"], start["goes_on"]) == (0, 0, True, True)
    assert found["reasons"]["refused: 503 not_ready"] > 0
    assert found["end"] == {"exit_code": 0, "orphans": 0, "port_free": True}
    assert "Every mark was met." in shown and "--redis names the setting" in shown


def test_what_a_server_does_badly_is_said_in_sentences(run):
    check_bad(first_good(lambda: run("BAD"), check_bad))  # a kill may find no request that it could break


def check_bad(ended):
    code, found, shown = ended
    assert code == 1 and found["aborted"] is None
    assert found["all"]["lost"] > 0 and found["all"]["failed"] > 0 and found["all"]["different"] == 0
    assert set(found["reasons"]) >= {"failed: 503 worker_died", "refused: 429 queue_full"}
    said = "\n".join(found["missed"])
    for sentence in ("requests were lost", "in flight at a kill were answered as undisturbed", "1 of 1 stopped workers were not noticed"):
        assert sentence in said and sentence in shown
    assert "The server did not go on at a start on a full disk." in found["missed"]
    assert at(found, "hang")["detected"] is False and at(found, "hang")["not_ready_s"] is None
