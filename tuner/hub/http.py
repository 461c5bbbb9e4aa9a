"""GET over HTTP with the standard library: what fails for a moment is asked again, and what says who asks
stays with the host that was asked.

Proxies come from the environment (HTTPS_PROXY), certificates from SSL_CERT_FILE or the system.
"""

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO
from urllib.parse import urlsplit

from tuner.errors import DataError

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""seconds before each new attempt"""
LONGEST_RETRY_AFTER = 60.0
"""seconds that a server's Retry-After is followed"""
TIMEOUT = 30.0
"""seconds without a byte after which a connection counts as broken"""
PIECE = 1 << 20
TRANSIENT_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
"""answers that may be others in a moment"""
CREDENTIAL_HEADERS = ("Authorization", "Cookie")
"""headers that say who asks: another host than the one asked never sees them"""


def without_credentials(url: str) -> str:
    """An address as it may be shown: without the user name and password that it may hold.

    >>> without_credentials("https://me:secret@hub.example:8443/org/name")
    'https://hub.example:8443/org/name'
    """
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class HttpRefused(Exception):
    """An answer that asking again won't change, such as 404."""

    def __init__(self, status: int, url: str, after: float = 0.0, code: str = "") -> None:
        parts = urlsplit(without_credentials(url))
        super().__init__(f"{parts.netloc} answers with the status {status} to {parts.path}")
        self.status = status
        self.after = after
        """seconds that the server wants us to wait"""
        self.code = code
        """the word that Hugging Face says with it, such as GatedRepo"""


class ConnectionBroken(Exception):
    """A connection that broke or was not made; the message says how."""

    after = 0.0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to another one, and tells that one nothing of who asks."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if request is not None and (before.scheme, before.netloc) != (after.scheme, after.netloc):
            for name in CREDENTIAL_HEADERS:
                request.remove_header(name)
        return request


def get(url: str, headers: Mapping[str, str], most: int = 8 << 20) -> bytes:
    """The content of a small file, or the first `most` bytes of it. Raises HttpRefused, and DataError when
    the server can't be reached.
    """
    for pause in (*PAUSES[:3], None):
        try:
            with open_url(url, headers) as response:
                content = b""
                while len(content) < most and (piece := read_piece(response)):
                    content += piece
                if len(content) < most and response.length:
                    raise ConnectionBroken(f"the connection ended after {len(content):,} bytes")
                return content[:most]
        except (HttpRefused, ConnectionBroken) as error:
            if isinstance(error, HttpRefused) and error.status not in TRANSIENT_STATUS:
                raise
            if pause is None:
                raise unreachable_error(url, str(error)) from error
            time.sleep(max(pause, error.after))
    raise AssertionError


def unreachable_error(url: str, why: str) -> DataError:
    """The error for a server that can't be reached."""
    parts = urlsplit(without_credentials(url))
    server = f"{parts.scheme}://{parts.netloc}" if parts.netloc else url or "A server without a name"
    return DataError(
        f"{server} can't be reached, after several attempts: {why}. Look at the connection (HTTPS_PROXY "
        "names a proxy, HF_ENDPOINT or MODELSCOPE_ENDPOINT a mirror) and run the same command again: what "
        "was received is kept. Without a network, use files that are here: data=local data.path=FILE, "
        "model=local model.path=DIR."
    )


def open_url(url: str, headers: Mapping[str, str]) -> HTTPResponse:
    """An answer whose body is still to be read. Raises HttpRefused, ConnectionBroken, and DataError
    for what is no address or no trusted server.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{without_credentials(url)} is not a web address; http:// or https:// was expected.")
    opener = urllib.request.build_opener(_Redirects)
    try:
        response: HTTPResponse = opener.open(
            urllib.request.Request(url, headers=dict(headers)), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        after, code = retry_after(error.headers.get("Retry-After")), error.headers.get("X-Error-Code", "")
        error.close()
        raise HttpRefused(error.code, url, after, code) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise unreachable_error(
                url, f"its certificate is not trusted here ({error.reason.verify_message})"
            ) from error
        raise ConnectionBroken(str(error.reason)) from error
    except (HTTPException, OSError) as error:
        raise ConnectionBroken(str(error) or type(error).__name__) from error
    return response


def retry_after(after: str | None) -> float:
    """What a server's Retry-After asks for, as far as it is followed; a date is not.

    >>> retry_after("7"), retry_after("3600"), retry_after("Wed, 21 Oct 2026 07:28:00 GMT"), retry_after(None)
    (7.0, 60.0, 0.0, 0.0)
    """
    return min(LONGEST_RETRY_AFTER, float(after)) if after and after.isdecimal() else 0.0


def read_piece(response: HTTPResponse) -> bytes:
    """What came next of a body, nothing at its end. Raises ConnectionBroken."""
    # Apart from writing, whose OSErrors mean the disk.
    try:
        return response.read1(PIECE)
    except (HTTPException, OSError) as error:
        raise ConnectionBroken(str(error) or type(error).__name__) from error
