import json

from loadtest.record import Start
from loadtest.run import create_run, git_commit


def test_manifest_first_then_a_line_per_request(tmp_path):
    run = create_run(tmp_path / "runs", "bench", {"url": "http://x", "users": [1, 2]})
    run.add(Start("score", 1, 5.0, 0.0).record(6.0, 429, None))
    manifest, request = map(json.loads, run.path.read_text().splitlines())
    run.close()
    assert manifest["kind"] == "manifest" and manifest["users"] == [1, 2]
    assert {"time", "url", "machine", "python", "client", "commit"} <= manifest.keys()
    assert (request["outcome"], request["status"]) == ("shed", 429)


def test_two_runs_are_two_files(tmp_path):
    paths = set()
    for _ in range(2):
        run = create_run(tmp_path, "load", {})
        run.close()
        paths.add(run.path)
    assert len(paths) == 2


def test_the_commit_says_whether_files_differ_from_it(monkeypatch):
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("+")) == 40
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None, "no git"
