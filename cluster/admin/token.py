"""The operator's token: a file that only its owner can read."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from cluster.api.auth import parse_keys
from cluster.errors import ConfigurationError

TOKEN_BYTES = 32


def ensure_token(path: Path) -> None:
    """Make the file with a new token where there is none. Raises ConfigurationError for one that is of no use, or
    that others can read."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.lexists(path):
            _make(path)
    except OSError as error:
        raise _problem(path, f"cannot be made ({error.strerror or error})") from error
    check_token(path)


def check_token(path: Path) -> None:
    """Raises ConfigurationError for a file that is absent, of no use, or that others can read."""
    try:
        mode = path.stat().st_mode
        parse_keys(path.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise _problem(path, f"is not there; make it: (umask 077; openssl rand -hex 32 > {path})") from error
    except (OSError, ValueError) as error:
        raise _problem(path, f"cannot be used ({_reason(error)})") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _problem(path, f"others can use it; run: chmod 600 {path}")


def read_token(path: Path) -> str:
    """The first token of the file that is there in clear. Raises ConfigurationError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError) as error:
        hint = "; step35 serve makes it" if isinstance(error, FileNotFoundError) else ""
        raise _problem(path, f"cannot be read ({_reason(error)}){hint}") from error
    tokens = [line for line in lines if line and not line.startswith(("#", "sha256:"))]
    if not tokens:
        raise _problem(path, "holds no token in clear")
    return tokens[0]


def _make(path: Path) -> None:
    """Complete from the first moment: whoever starts at the same time reads the same token. Raises OSError."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "w", encoding="ascii") as opened:
            opened.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
        with contextlib.suppress(FileExistsError):  # another start was faster
            os.link(draft, path)
    finally:
        draft.unlink()


def _problem(path: Path, sentence: str) -> ConfigurationError:
    return ConfigurationError(f"admin.token_file = {path}: {sentence}")


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
