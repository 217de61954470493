"""Where a data set may lie, and how it is read there: `data.root` and the keys beside it.

A root is a folder (`data/cifar10`, `file:data/cifar10`), a web address (`https://host/cifar10`), or a command
that writes a file to its standard output (`pipe:ssh host cat /data/cifar10/{}`; `s3://bucket/cifar10` is
short for one). This module parses and checks roots; it reads nothing.
"""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

WEB = ("http", "https")
KINDS = "a folder, file:, http://, https://, s3:// or pipe:COMMAND"
# Where a secret may follow in a command. A name that continues after these words means something else:
# --token-file PATH, PasswordAuthentication=no. UID:GID, as docker has them, are no name and password.
_SECRET = r"(token|passw(or)?d|passphrase|(?<![a-z])pass|secret|bearer|(api|access|account|auth)[_-]?key)"
_BEFORE_SECRETS = re.compile(
    rf"""({_SECRET}["']?\s*[=:]|(authorization|cookie)\s*[=:]|(?<!\S)--[\w-]*{_SECRET}\s|\bsshpass\s+-p"""
    r"""|(?<!\S)(-[a-z]*u\s|-u|--(proxy-)?user|--auth)[\s=]*(?!\d+:\d+(\s|$))[^\s:,%]+[:,%]"""
    r""")\s*["']?((bearer|basic|token)\s+)?["']?""",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Access:
    """How the files of a data set are read.

    Args:
        retry_seconds: for which a read that fails is tried again.
        cache: folder for files that come over the network; None: below the user's cache folder.
        cache_bytes: the most that is kept there of a data set.
        commands: whether the user allowed that `pipe:` and `s3:` start programs.
    """

    retry_seconds: float = 0.0
    cache: str | None = None
    cache_bytes: int = 50_000_000_000
    commands: bool = False


ONCE = Access()  # a read that fails is not tried again


def local_folder(root: str | Path) -> Path | None:
    """The folder that a root names; None for a remote one."""
    text = str(root)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    if text.startswith("file:"):
        return Path(text.removeprefix("file:"))
    return None if _scheme(text) else Path(root)


def command_of(root: str) -> list[str] | None:
    """The words of a root's command, with `{}` for a file's name; None for a root that is no command."""
    if root.startswith("s3://"):
        return ["aws", "s3", "cp", f"{root.rstrip('/')}/{{}}", "-"]
    return shlex.split(root.removeprefix("pipe:")) if root.startswith("pipe:") else None


def cache_root(access: Access) -> Path:
    """The folder of this machine for all that comes over the network."""
    if access.cache is None:
        return (Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hybrid-infomax").expanduser()
    return Path(access.cache).expanduser()


def cache_folder(access: Access, fingerprint: str) -> Path:
    """Where the files of a remote data set are kept on this machine."""
    return cache_root(access) / fingerprint[:16]


def check_root(root: str) -> str:
    """Returns the root itself. Raises ValueError, one line without any secret in it, where it is no root."""
    scheme = _scheme(root)
    if scheme == "pipe":
        try:
            words = command_of(root) or []
        except ValueError as error:
            raise ValueError(f"the command after pipe: cannot be split into words ({error})") from None
        if not any("{}" in word for word in words):
            raise ValueError("expected {} in the command after pipe:, which a file's name takes the place of")
        for word in words:
            for match in re.finditer(r"\w*://", word):
                _check_address(word[match.start() :])
        if _holds_secret(" ".join(words)):
            raise ValueError(
                "the command after pipe: must hold no password, token or key, which a run's folder would "
                "keep; put it in ~/.netrc, in the program's own configuration, or in an environment variable "
                "that a script of your own reads"
            )
    elif scheme in (*WEB, "s3"):
        _check_address(root)
        if not urlsplit(root).hostname:
            raise ValueError(f"expected {scheme}://HOST/FOLDER")
    elif scheme == "file":
        if root.startswith("file://") and urlsplit(root).netloc not in ("", "localhost"):
            raise ValueError("expected file:FOLDER or file:///FOLDER, a folder of this machine")
    elif scheme:
        raise ValueError(f"expected {KINDS}, got {scheme}:")
    return root


def scrubbed(text: str) -> str:
    """Another program's text, for messages: one line, cut, without the secrets that addresses may hold."""
    text = re.sub(r"//[^/\s@]*@", "//", " ".join(text.split()))
    return re.sub(r"\?[^\s'\")]*", "?...", text)[:200]


def _scheme(root: str) -> str | None:
    match = re.match(r"(pipe|file)(?=:)|[A-Za-z][A-Za-z0-9+.-]*(?=://)", root)
    return match[0] if match else None


def _holds_secret(command: str) -> bool:
    """Whether a command seems to hold a secret. $NAME, which a shell reads from its environment, is none."""
    return any(
        command[match.end() : match.end() + 1].strip() not in ("", "$")
        for match in _BEFORE_SECRETS.finditer(command)
    )


def _check_address(address: str) -> None:
    parts = urlsplit(address)  # raises ValueError for half an IPv6 address
    if "@" in parts.netloc:
        raise ValueError(
            "an address must hold no user and password, which a run's folder would keep; "
            "put them in ~/.netrc (machine HOST login USER password PASSWORD)"
        )
    if parts.query or parts.fragment or "?" in address:
        raise ValueError(
            "an address must hold no query (?...), which may be a secret and a run's folder would keep; "
            "serve the folder at a plain address, with credentials in ~/.netrc"
        )
    try:
        usable = parts.port != 0  # raises ValueError for what is no number, or too high
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("expected a port from 1 to 65535 in the address")
