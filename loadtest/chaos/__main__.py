"""`python -m loadtest.chaos`: disturbs a server of its own under load, and says what became of every request.

Its exit code is 1 if a mark was missed. With `--fuzz N` it sends N malformed requests instead.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from loadtest.chaos import fuzz, report, trial
from loadtest.chaos.redis import NoRedis, Redis
from loadtest.chaos.schedule import plan
from loadtest.chaos.server import OwnServer, serve_command
from loadtest.peers.servers import free_port, stoppable
from loadtest.run import machine_facts

MODEL = "models/storyteller"


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    options = trial.Options(clients=args.clients, minutes=args.minutes, seed=args.seed)
    redis = Redis(free_port()) if args.redis else None
    further = [*args.serve, f"--{args.redis}", redis.url] if redis else args.serve
    port = args.port or free_port()
    if args.fuzz:
        command = serve_command(args.model, port, options.max_waiting, [*fuzz.SERVER_OPTIONS, *further])
    else:
        command = serve_command(args.model, port, options.max_waiting, further)
    server = OwnServer(command, port, args.out / f"chaos-server-{port}.log")
    server.log.unlink(missing_ok=True)
    try:
        with stoppable():
            if redis is not None:
                redis.start()
            return fuzz.run(args.fuzz, args.seed, server, args.out) if args.fuzz else disturb(options, server, redis, args.out, argv)
    except NoRedis as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped before the end: nothing was written\n")
        return 130
    finally:
        server.kill()
        if redis is not None:
            redis.stop()


def disturb(options: trial.Options, server: OwnServer, redis: Redis | None, out: Path, argv: Sequence[str] = ()) -> int:
    """Run, write the result to chaos.json, print it. Returns the exit code."""
    seen = asyncio.run(trial.run(options, server, plan(options.minutes, redis is not None), redis))
    found = report.result(options, seen, trial.log_faults(server.log))
    missed = report.missed(found)
    manifest = {
        "command": ["python", "-m", "loadtest.chaos", *argv],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine_facts(),
    }
    (out / "chaos.json").write_text(json.dumps({"manifest": manifest, "missed": missed, **found}, indent=1) + "\n")
    skipped = [] if redis else ["No Redis was stopped and started: --redis names the setting that takes its URL."]
    sys.stdout.write("\n".join([report.tables(found), *skipped, "", *(missed or ["Every mark was met."])]) + "\n")
    return 1 if missed else 0


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL, help=f"as `python -m serve --model`; default {MODEL}")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load; a shorter run disturbs less often; default 10")
    parser.add_argument("--clients", type=int, default=32, help="steady ones; default 32")
    parser.add_argument("--seed", type=int, default=0, help="of requests and clients that leave")
    parser.add_argument("--port", type=int, help="of the server; a free one when left out")
    parser.add_argument(
        "--redis",
        metavar="SETTING",
        help="the setting of the server that takes the URL of a Redis for its limits: start one, stop it and start it again during the run",
    )
    parser.add_argument(
        "--fuzz", type=int, default=0, metavar="N", help="send N malformed and half-valid requests instead, and count statuses"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of chaos.json or fuzz.json, and of the server's log")
    parser.add_argument("serve", nargs="*", help="after --: further options of `python -m serve`")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
