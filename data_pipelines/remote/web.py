"""The files of a data set on a web server."""

import http.client
import ipaddress
import netrc
import ssl
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO
from urllib.parse import quote, urljoin, urlsplit

from data_pipelines.access import scrubbed
from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import TransientError
from data_pipelines.remote.transfer import CHUNK, TIMEOUT, Stream

TRANSIENT = (408, 425, 429)  # of the statuses 4xx: request timeout, too early, too many requests


class Web:
    """The files below a web address.

    Certificates are verified; ~/.netrc and the proxies of the environment are used.
    """

    advice = "see that the server is up and serves the folder whole"

    def __init__(self, root: str):
        self.root = root.rstrip("/")
        self._opener = urllib.request.OpenerDirector()  # of http and https alone
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
            _Redirects(self.root),
        ):
            self._opener.add_handler(handler)
        self._opener.addheaders = [("User-Agent", "hybrid-infomax")]

    def address(self, name: str) -> str:
        return urljoin(f"{self.root}/", quote(name))

    @contextmanager
    def open(self, name: str, start: int, stop: threading.Event) -> Iterator[Stream]:
        """Opens a file from byte `start` on, or from its beginning where the server has no ranges.

        Raises TransientError, or UserError where the server refuses for good.
        """
        address = self.address(name)
        with self._response(address, start, first=name == "dataset.json") as response:
            begins, total = 0, None
            if response.status == 206:
                begins, total = _range(response)
            elif response.status != 200:
                raise TransientError(address, f" was answered with status {response.status}", self.advice)
            if begins not in (0, start):
                raise TransientError(
                    address, f" came from byte {begins:,}, asked from {start:,}", self.advice
                )
            digits = response.headers.get("Content-Length", "")
            length = int(digits) if digits.isdecimal() and len(digits) < 19 else None
            if total is not None:
                length = total - begins
            yield Stream(begins, length, lambda: self._read(address, response))

    def _response(self, address: str, start: int, first: bool) -> http.client.HTTPResponse:
        """The server's response. A refusal of the first file is a UserError; later ones may be transient."""
        request = _request(address, self.root)
        if start:
            request.add_header("Range", f"bytes={start}-")
        try:
            return self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            status = error.code
            what = f" cannot be fetched ({status} {http.client.responses.get(status, 'unknown')})"
            if status == 416 and start:  # the file is shorter: the bytes here are not its
                return self._response(address, 0, first)
            if status >= 500 or status in TRANSIENT:
                raise TransientError(address, what, self.advice) from None
            raise _refused(first, address, what, self._refusal(status)) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(address, getattr(error, "reason", error)) from None
        except ValueError as error:  # a malformed host, in the address or in a redirect
            what = f" cannot be fetched ({scrubbed(str(error))})"
            advice = "check data.root, and where the server redirects to"
            raise _refused(first, address, what, advice) from None

    def _read(self, address: str, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(CHUNK)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a torn chunk
            raise self._failed(address, error) from None

    def _failed(self, address: str, why: object) -> TransientError | UserError:
        if isinstance(why, ssl.SSLCertVerificationError):
            return UserError(
                f"{address} cannot be fetched: the server's certificate is not valid "
                f"({why.verify_message}); where it is your own, name its authority in SSL_CERT_FILE"
            )
        if isinstance(why, TimeoutError):
            return TransientError(address, f" sent nothing for {TIMEOUT:g} s", self.advice)
        text = scrubbed(getattr(why, "strerror", None) or str(why)) or type(why).__name__
        return TransientError(address, f" cannot be fetched ({text})", self.advice)

    def _refusal(self, status: int) -> str:
        """What the user can do about a status that refuses."""
        if status in (401, 403):
            if not _private(self.root):
                return "the password of ~/.netrc is never sent over http: give data.root as https://"
            host = urlsplit(self.root).hostname
            line = f"machine {host} login USER password PASSWORD"
            return f"give the right to read it, with a line in ~/.netrc: {line}"
        if status in (404, 410):
            return "check data.root: it is the folder that holds dataset.json"
        return "check data.root, and what the server says in its log"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http; credentials go to the root's server alone."""

    def __init__(self, root: str):
        self.root = root

    def redirect_request(
        self,
        request: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        message: str,
        headers: http.client.HTTPMessage,
        url: str,
    ) -> urllib.request.Request:
        scheme = urlsplit(url).scheme
        if scheme not in ("http", "https") or (request.type == "https" and scheme == "http"):
            raise UserError(
                f"{request.full_url.partition('?')[0]} redirects to {scheme}:, expected https; "
                "give the address it should be fetched from"
            )
        followed = _request(url, self.root)
        if wanted := request.get_header("Range"):
            followed.add_header("Range", wanted)
        return followed


def _request(address: str, root: str) -> urllib.request.Request:
    """A request; with the user's credentials where it goes to the server of `root` and is private."""
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity"})
    if _server(address) != _server(root) or not _private(root):
        return request
    try:
        login = netrc.netrc().hosts.get(
            urlsplit(address).hostname or ""
        )  # not `default`, which means any host
    except FileNotFoundError:
        login = None
    except (OSError, ValueError, netrc.NetrcParseError) as error:  # its text may hold a password
        line = getattr(error, "lineno", None)
        where = f"line {line}" if line else "is it yours, and chmod 600?"
        raise UserError(f"~/.netrc cannot be read ({where}); mend or remove it") from None
    if login:
        token = b64encode(f"{login[0]}:{login[2]}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _refused(first: bool, address: str, what: str, advice: str) -> TransientError | UserError:
    return UserError(f"{address}{what}; {advice}") if first else TransientError(address, what, advice)


def _server(address: str) -> tuple[str, str | None, int]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _private(address: str) -> bool:
    """Whether a request to this address is encrypted, or stays on this machine."""
    parts = urlsplit(address)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """`Content-Range: bytes 5-9/10` -> (5, 10); (-1, None) for what is not understood."""
    unit, _, rest = response.headers.get("Content-Range", "").strip().partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0].strip()
    if unit != "bytes" or not first.isdecimal():
        return -1, None
    return int(first), int(total) if total.isdecimal() else None
