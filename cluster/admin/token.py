"""The operator's token: a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from cluster.errors import ConfigurationError

TOKEN_BYTES = 32


def ensure_token(path: Path) -> None:
    """Make the file with a new token where there is none. Raises ConfigurationError for one that others can read."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        _check_private(path)
        return
    except OSError as error:
        raise ConfigurationError(f"admin.token_file = {path}: cannot be made: {error.strerror or error}") from error
    with os.fdopen(file, "w", encoding="ascii") as made:
        made.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")


def read_token(path: Path) -> str:
    """The first token of the file. Raises ConfigurationError."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"admin.token_file = {path}: cannot be read: {error}") from error
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith(("#", "sha256:"))]
    if not tokens:
        raise ConfigurationError(f"admin.token_file = {path}: holds no token in clear")
    return tokens[0]


def _check_private(path: Path) -> None:
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"admin.token_file = {path}: others can read it; run: chmod 600 {path}")
