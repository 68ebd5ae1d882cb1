"""What a server may do and how much of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from lookalike.errors import LookalikeError

__all__ = ["Settings", "is_loopback"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server may do and how much of it.

    Attributes:
        token: what clients must show; None lets everybody in, which `checked` allows on this machine only.
        open: lets everybody in on any address, knowingly.
        host: the address it listens at.
        allow_hosts: names by which browsers may call it, besides IP addresses and localhost.
        writable: whether clients may add and delete.
        uploads: the folder that keeps pictures which were added over the network.
        folders: folders whose pictures may be shown, besides those that hold indexed pictures.
        fetch: whether clients may search with a picture at a URL.
        fetch_hosts: ``host`` or ``host:port`` that such a URL may name although their addresses are private.
        feedback: the file that keeps searches and judgements; None records nothing.
        upload_bytes: of one picture.
        pixels: of one picture, as its header tells them.
        pictures: in one request.
        body_bytes: of all requests that are being read or answered at once.
        waiting: pictures that wait for the encoder; more are told to come back.
        rate: requests per second and client, with bursts of ten times as many; 0 is no limit.
        seconds: for one request.
        line_bytes: of one line of an import.
    """

    token: str | None = None
    open: bool = False
    host: str = "127.0.0.1"
    allow_hosts: tuple[str, ...] = ()
    writable: bool = False
    uploads: Path | None = None
    folders: tuple[Path, ...] = ()
    fetch: bool = False
    fetch_hosts: tuple[str, ...] = ()
    feedback: Path | None = None
    upload_bytes: int = 20 << 20
    pixels: int = 60_000_000
    pictures: int = 16
    body_bytes: int = 256 << 20
    waiting: int = 512
    rate: float = 50.0
    seconds: float = 30.0
    line_bytes: int = 8 << 20

    def checked(self) -> Settings:
        """Itself, where it lets in nobody by mistake.

        Raises:
            LookalikeError: an address that others reach, with neither a token nor the word that everybody may come in;
                or a token that can be guessed.
        """
        if not is_loopback(self.host) and self.token is None and not self.open:
            raise LookalikeError(
                f"{self.host} can be reached from other machines: give --token, or --open to let everybody in"
            )
        if self.token is not None and len(self.token) < 16:
            raise LookalikeError("the token is shorter than 16 characters: make one with `openssl rand -hex 16`")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise LookalikeError("the token must be printable ASCII without blanks: it travels in a header")
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
