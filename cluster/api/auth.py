"""Bearer keys. Denies by default: every path but the public ones needs a key once a key file is configured."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api.errors import error_response
from cluster.api.observation import observation_of
from cluster.api.paths import PUBLIC_PATHS
from cluster.errors import Unauthorized

logger = logging.getLogger(__name__)

_HASHED_LINE = re.compile(r"sha256:([0-9a-fA-F]{64})")
_PLAIN_LINE = re.compile(r"(?!sha256:)[\x21-\x7e]+")


class KeyFile:
    """The keys of a file, read again when the file changes. A file that cannot be used allows nobody.

    One key a line, plain or `sha256:<hex>`; `#` begins a comment line. Only digests are kept in memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests: list[bytes] = []
        self._signature: tuple[int, ...] | None = None
        self._reload()

    def allows(self, key: bytes) -> bool:
        """Whether the key is one of the file's. Takes the same time whichever of them it is, or none."""
        if self._signature != _signature(self._path):
            self._reload()
        digest = hashlib.sha256(key).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def _reload(self) -> None:
        # The signature is taken before the content: a change in between is seen next time.
        self._signature = _signature(self._path)
        try:
            self._digests = parse_keys(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            self._digests = []
            logger.critical("no request is allowed: the API key file %s cannot be used (%s)", self._path, error)


def parse_keys(text: str) -> list[bytes]:
    """SHA-256 digests of a key file's keys. Raises ValueError naming a line that is neither form, or if no line is."""
    digests = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if hashed := _HASHED_LINE.fullmatch(entry):
            digests.append(bytes.fromhex(hashed[1]))
        elif _PLAIN_LINE.fullmatch(entry):
            digests.append(hashlib.sha256(entry.encode()).digest())
        else:
            raise ValueError(f"line {number} is neither a key without spaces nor sha256: and 64 hex digits")
    if not digests:
        raise ValueError("it holds no key")
    return digests


class AuthMiddleware:
    """Answers 401 unless the request carries a key that the file allows.

    Decides on the path that will be routed (`scope["path"]`), never on a URL rebuilt from headers.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyFile, is_public: Callable[[str], bool] = PUBLIC_PATHS.__contains__
    ) -> None:
        """is_public: whether a path needs no key."""
        self._app = app
        self._keys = keys
        self._is_public = is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "lifespan" or (scope["type"] == "http" and self._is_public(scope["path"]))
        if is_open or self._is_allowed(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            is_missing = all(name != b"authorization" for name, _ in scope["headers"])
            observation_of(scope).unauthorized("missing" if is_missing else "unknown")
            await error_response(Unauthorized("The API key is missing or not known."))(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_allowed(self, scope: Scope) -> bool:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1:
            return False
        scheme, _, key = values[0].partition(b" ")
        return scheme.lower() == b"bearer" and self._keys.allows(key.strip())


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino, status.st_size)
