import json

from loadtest.load import closedloop


def run_bench(url, out, capsys, *args):
    code = closedloop.main(["--url", url, "--out", str(out), "--max-tokens", "4", *args])
    return code, capsys.readouterr()


def requests_of(out):
    (path,) = out.glob("bench-*.jsonl")
    manifest, *lines = map(json.loads, path.read_text().splitlines())
    return manifest, lines


def test_a_good_server(fake_litmus, tmp_path, capsys):
    code, printed = run_bench(fake_litmus.url, tmp_path, capsys, "--clients", "1", "3", "--requests-per-client", "2")
    assert code == 0
    rows = [line.split("|")[1:-1] for line in printed.out.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in row][:5] for row in rows[2:]] == [["1", "4", "4", "0", "0"], ["3", "12", "12", "0", "0"]]
    manifest, lines = requests_of(tmp_path)
    assert manifest["model"]["id"] == "fake" and manifest["users"] == [1, 3] and manifest["options"]["max_tokens"] == 4
    assert len(lines) == 16 and {line["outcome"] for line in lines} == {"ok"}
    chat = next(line for line in lines if line["kind"] == "chat")
    assert 5 <= chat["ttft_ms"] <= chat["e2e_ms"] and chat["completion_tokens"] == 4 and len(chat["itl_ms"]) == 2
    assert len(fake_litmus.bodies) == 18, "16, and one chat and one score that warm the server up"


def test_shed_truncated_and_broken_are_distinguished(fake_litmus, tmp_path, capsys):
    fake_litmus.chats[:] = ["ok", "busy", "truncated", "broken", "error", "ok"]
    fake_litmus.scores[:] = ["ok", "broken"]
    code, _ = run_bench(fake_litmus.url, tmp_path, capsys, "--clients", "1", "--requests-per-client", "5")
    _, lines = requests_of(tmp_path)
    assert code == 0
    chats = [line for line in lines if line["kind"] == "chat"]
    assert [line["outcome"] for line in chats] == ["shed", "failed", "failed", "failed", "ok"]
    assert chats[1]["reason"].startswith("truncated") and chats[2]["reason"].startswith("truncated")
    assert "worker_died" in chats[3]["reason"]
    assert [line["outcome"] for line in lines if line["kind"] == "score"] == ["failed", "ok", "ok", "ok", "ok"]


def test_no_server(free_port, tmp_path, capsys):
    code, printed = run_bench(f"http://127.0.0.1:{free_port}", tmp_path, capsys)
    assert code == 2
    assert "make run" in printed.err and "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())
