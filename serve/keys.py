"""`python -m serve.keys new --name alice --role user`: makes a key, and the line by which the server knows it.

`python -m serve.keys line` makes the line of a key that you have already, and reads it from the standard input. Starts no server.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from serve.admission.keys import NAME, Key, digest_of, new_key

MIN_LENGTH = 32  # of a key that somebody brings; a shorter one could be guessed from its digest
ADMIN = "admin may also read /slots, /metrics and /overview, and load and unload models and adapters"


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "new":
        secret, key = new_key(options.name, options.role)
    else:
        secret = sys.stdin.readline().strip()
        if len(secret) < MIN_LENGTH:
            sys.stderr.write(f"litmus: the key has {len(secret)} characters; it must have at least {MIN_LENGTH}, and be random\n")
            return 2
        key = Key(options.name, options.role, digest_of(secret))
    if options.file is None:
        sys.stdout.write(f"line for the file security.keys_file, or for security.keys:\n{key.line}\n")
    else:
        try:
            _append(options.file, key.line)
        except OSError as error:
            sys.stderr.write(f"litmus: {options.file} cannot be written ({error.strerror}); no key was made\n")
            return 2
        sys.stdout.write(f"{key.name} was added to {options.file}\n")
    if options.command == "new":
        sys.stdout.write(f"key for {key.name}, shown only now:\n{secret}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve.keys", description="makes keys for security.keys_file")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, meaning in (("new", "make a key"), ("line", "make the line of a key that is read from the standard input")):
        command = commands.add_parser(name, help=meaning, description=meaning)
        command.add_argument("--name", required=True, type=_name, help="whose key it is: letters, digits and . _ @ -")
        command.add_argument("--role", choices=("user", "admin"), default="user", help=ADMIN)
        command.add_argument("--file", help="append the line to this file; without it, the line is printed")
    return parser


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: use up to 64 letters, digits and . _ @ -")
    return text


def _append(path: str, line: str) -> None:
    """A new file can be read by its owner only."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+", encoding="utf-8") as file:
        text = file.read()
        file.write(("\n" if text and not text.endswith("\n") else "") + line + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
