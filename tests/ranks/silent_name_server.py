"""Run in namespaces of its own: connects to a bundle's store while the host's only name server never answers.

    python -m tests.ranks.silent_name_server FOLDER

Prints the seconds that it took. FOLDER: for a file.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from routing.transport.endpoint import Endpoint
from routing.transport.member import _CONNECT_S
from routing.transport.rendezvous import StoreHost, connect_store

NAME_SERVER = "127.0.0.53"
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def raise_loopback() -> None:
    """A new network namespace has it, but down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _, flags = struct.unpack("16sh", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0)))
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))


def silence_names(folder: Path) -> socket.socket:
    """The name server that hears every question and answers none."""
    settings = folder / "resolv.conf"
    settings.write_text(f"nameserver {NAME_SERVER}\n")
    subprocess.run(["mount", "--bind", str(settings), "/etc/resolv.conf"], check=True, timeout=10)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((NAME_SERVER, 53))
    return server


def main() -> None:
    """What both ends of a bundle do first."""
    raise_loopback()
    server = silence_names(Path(sys.argv[1]))
    began_at = time.monotonic()
    host = StoreHost("127.0.0.1", timeout_s=10.0)
    attention = host.client()
    expert = connect_store(Endpoint("gloo", host.address, ""), _CONNECT_S)
    attention.set("key", "value")
    assert expert.get("key") == b"value"
    server.setblocking(False)
    assert server.recv(512), "nobody asked for a name: this tries nothing"
    sys.stdout.write(f"{time.monotonic() - began_at}\n")


if __name__ == "__main__":
    main()
