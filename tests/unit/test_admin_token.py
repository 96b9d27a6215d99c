"""The operator's token file: made once, for its owner alone, and refused where it would protect nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cluster.admin import token
from cluster.admin.token import check_token, ensure_token, read_token
from cluster.api.auth import KeyFile
from cluster.errors import ConfigurationError


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """File 0600, folder 0700 whatever the umask; nothing else is left in the folder. The server knows the token."""
    path = tmp_path / "new" / "admin.token"
    umask = os.umask(0)
    try:
        ensure_token(path)
    finally:
        os.umask(umask)
    assert (mode_of(path), mode_of(path.parent), list(path.parent.iterdir())) == (0o600, 0o700, [path])
    assert len(read_token(path)) >= 32
    assert KeyFile(path).allows(read_token(path).encode())


def test_one_that_is_there_stays(tmp_path: Path) -> None:
    """A second start must not lock out who knows the first token."""
    path = tmp_path / "admin.token"
    ensure_token(path)
    first = read_token(path)
    ensure_token(path)
    assert read_token(path) == first


def test_of_two_starts_at_once_one_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, which did not see it in time, uses what it finds."""
    path = tmp_path / "admin.token"
    path.write_text("of-the-faster-one\n")
    path.chmod(0o600)
    monkeypatch.setattr(token.os.path, "lexists", lambda _: False)
    ensure_token(path)
    assert read_token(path) == "of-the-faster-one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_one_that_others_can_use_is_refused(mode: int, tmp_path: Path) -> None:
    """With the command that mends it."""
    path = tmp_path / "admin.token"
    path.write_text("token\n")
    path.chmod(mode)
    with pytest.raises(
        ConfigurationError, match=f"admin.token_file = {path}: others can use it; run: chmod 600 {path}"
    ):
        ensure_token(path)


@pytest.mark.parametrize("content", ["", "two words\n", "# only a comment\n"])
def test_one_without_a_token_is_refused(content: str, tmp_path: Path) -> None:
    """It would allow nobody; better told at the start."""
    path = tmp_path / "admin.token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"admin\.token_file = .*cannot be used"):
        ensure_token(path)


def test_a_place_that_cannot_hold_it_is_named(tmp_path: Path) -> None:
    """A folder that is a file, and a token file that is a folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"admin\.token_file = .*file/admin\.token: cannot be made"):
        ensure_token(tmp_path / "file" / "admin.token")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ensure_token(tmp_path)


def test_on_a_cluster_that_runs_it_must_be_there(tmp_path: Path) -> None:
    """Its coordinator may be elsewhere; the message has the command that makes one."""
    with pytest.raises(ConfigurationError, match=r"is not there; make it: \(umask 077; openssl rand -hex 32 >"):
        check_token(tmp_path / "admin.token")


def test_the_first_token_in_clear_is_the_operators(tmp_path: Path) -> None:
    """Comments and digests are of no use to a client; a file with nothing else is named."""
    path = tmp_path / "admin.token"
    path.write_text(f"# ours\n\n  sha256:{'0' * 64}\nfirst\nsecond\n")
    assert read_token(path) == "first"
    path.write_text(f"sha256:{'0' * 64}\n")
    with pytest.raises(ConfigurationError, match="holds no token in clear"):
        read_token(path)
    path.unlink()
    with pytest.raises(ConfigurationError, match="step35 serve makes it"):
        read_token(path)
