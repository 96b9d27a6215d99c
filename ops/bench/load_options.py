"""What `ops.bench.load` can be told, and what it refuses: above all, to load somebody else's host by mistake."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ops.bench.rebalance import ORDER

SEED = 20


def parse(description: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options that make sense together; others end the program with a sentence. Adds `api_key`."""
    parser = _parser(description)
    options = parser.parse_args(arguments)
    if options.url is not None and urlsplit(options.url).scheme not in ("http", "https"):
        parser.error(f"--url {options.url}: an address such as http://127.0.0.1:8000")
    if options.url is not None and not is_loopback(options.url) and not options.i_own_this_host:
        parser.error(
            f"--url {options.url} is not this machine, and this program is made to overload what it speaks to. If the "
            "host is yours to load, say so with --i-own-this-host"
        )
    if any(load <= 0 for load in options.rates or options.streams):
        parser.error("levels of load are greater than 0")
    if not 0 <= options.warm_up_s < options.seconds:
        parser.error(f"--warm-up-s {options.warm_up_s:g} must be less than --seconds {options.seconds:g}")
    options.api_key = _api_key(parser, options.api_key_file)
    return options


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench.load", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    levels = parser.add_mutually_exclusive_group(required=True)
    levels.add_argument(
        "--rates", type=float, nargs="+", metavar="R", help="open loop: requests a second, level by level"
    )
    levels.add_argument("--streams", type=int, nargs="+", metavar="N", help="closed loop: streams, level by level")
    server = parser.add_argument_group("server")
    server.add_argument("--url", help="a running one; default: start a nano cluster, and stop it afterwards")
    server.add_argument("--api-key-file", type=Path, metavar="FILE", help="its first line is the API key")
    server.add_argument("--i-own-this-host", action="store_true", help="allow an address that is not this machine")
    traffic = parser.add_argument_group("traffic")
    traffic.add_argument("--seconds", type=float, default=30.0, help="of each level (default: %(default)g)")
    traffic.add_argument(
        "--warm-up-s", type=float, default=5.0, help="not counted, of each level (default: %(default)g)"
    )
    traffic.add_argument(
        "--traffic",
        choices=("nano", "plain"),
        default="nano",
        help=f"nano: {', '.join(ORDER)} in turn, as the nano model knows them; plain: distinct random prompts, for any "
        "model (default: %(default)s)",
    )
    traffic.add_argument("--domain-s", type=float, default=10.0, help="seconds of each domain (default: %(default)g)")
    traffic.add_argument("--prompt-tokens", type=int, default=128, help="of a plain prompt (default: %(default)s)")
    traffic.add_argument("--max-tokens", type=int, default=96, help="of an answer (default: %(default)s)")
    traffic.add_argument("--seed", type=int, default=SEED, help="of arrivals and prompts (default: %(default)s)")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--timeout-s", type=float, default=120.0, help="of a whole request (default: %(default)g)")
    limits.add_argument("--max-open", type=int, default=512, help="connections at once (default: %(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument("--figure", type=Path, metavar="FILE.png", help="draw latency against load")
    output.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    return parser


def _api_key(parser: argparse.ArgumentParser, file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        lines = file.read_text().split()
    except OSError as error:
        parser.error(f"--api-key-file {file} cannot be read: {error.strerror}")
    if not lines:
        parser.error(f"--api-key-file {file} is empty")
    return lines[0]


def is_loopback(url: str) -> bool:
    """Is this address of this machine alone?"""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
