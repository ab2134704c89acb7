"""One endpoint of a chain: JSON-RPC over a session that stays open, batches whose ids are checked, every call metered.

web3's AsyncHTTPProvider is the transport; four of its habits (8.0.0, read in its source) are closed here: it opens a
connection a call, takes a process-wide lock through a thread pool for each, sorts the answers of a batch without
comparing their ids with what was asked (one missing answer shifts all later ones), and reads answers of any size.

Nothing is retried here but a request that met a connection the server had closed: whoever called knows its lease and
backs off. No message and no exception that leaves this room holds the secret part of a URL.
"""

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast
from urllib.parse import SplitResult, unquote, urlsplit

import aiohttp
import orjson
from eth_typing import URI
from web3 import AsyncHTTPProvider
from web3.types import RPCEndpoint, RPCRequest, RPCResponse

from reconsup import __version__, redact
from reconsup.chain import certificates, pauses
from reconsup.chain.errors import (
    AnswerTooLarge,
    AnswerTooSlow,
    CallRefused,
    ChainInconsistent,
    ChainUnavailable,
    Throttled,
)
from reconsup.chain.rate import Rate

ANSWER_BYTES_MAX = 64 * 1024 * 1024
KEEPALIVE_SECONDS = 75.0  # longer than the default poll interval, so that an idle worker keeps its connection
CONNECTIONS_MAX = 8
QUOTED_CHARS_MAX = 160  # of an endpoint's own words in our messages
SECRET_CHARS_MIN = 6  # shorter pieces of a URL ("v3", "rpc", "eth") are words, not keys

# What providers say of an answer, a range or a batch that is too much for them.
OF_SIZE = (
    r"too (large|big|long|wide)|too many (results|blocks|logs|calls)|more than [\d,]+ (results|logs|blocks)|"
    r"(block range|response size|results?).{0,30}(limit|exceed|maximum)|(limit|exceed|maximum).{0,30}"
    r"(block range|response size)|with this block range|batch.{0,30}(limit|exceed|maximum)"
)

# Called as (network, method, outcome, seconds, count); outcome is ok, error, timeout, throttled or inconsistent. Once
# for all calls of an HTTP exchange that are alike: a batch may hold hundreds. seconds are those of the exchange.
OnCall = Callable[[str, str, str, float, int], None]
OnWait = Callable[[float], None]  # called before an exchange, with the seconds it lasts at most
Call = tuple[str, Sequence[Any]]
Failure = ChainUnavailable | ChainInconsistent


@dataclass(frozen=True, slots=True)
class Refusal:
    """The endpoint's JSON-RPC error for one call of a batch; the message is one clean line."""

    code: int
    message: str
    retry_after_seconds: float | None = None

    @property
    def is_throttling(self) -> bool:
        """Whether it asks us to come back later."""
        if self.code == -32005 and self._says(OF_SIZE):
            return False  # the code means "limit exceeded": some use it for the limit of an answer's size
        words = r"rate.?limit|too many requests|compute units|throttl"
        return self.code in (429, -32005, -32029) or self._says(words)

    @property
    def is_too_large(self) -> bool:
        """Whether it asks us to want less at a time."""
        return self.code in (413, -32003) or self._says(OF_SIZE)

    @property
    def is_unsupported(self) -> bool:
        """Whether it says that the endpoint does not have this method at all."""
        absent = r"(not (found|supported|available|allowed|exist)|unsupported|does not exist)"
        return self.code in (-32601, -32004) or self._says(rf"method\b.{{0,60}}\b{absent}|unsupported method")

    def _says(self, words: str) -> bool:
        return re.search(words, self.message, re.IGNORECASE) is not None


def _shown(url: str) -> str:
    """Where a URL leads, without what it may hide."""
    parts = _split(url)
    return redact.redact_url(url) if parts is not None and parts.hostname else "(unreadable URL)"


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # reading it is what validates it
    except ValueError:
        return None
    return parts


def _secrets(url: str) -> tuple[str, ...]:
    """The pieces of a URL that an endpoint might quote back at us, longest first."""
    parts = _split(url)
    if parts is None:
        return (url,)
    pieces = [parts.username or "", parts.fragment, parts.query, parts.path]
    pieces += parts.path.split("/") + re.split("[=&]", parts.query)
    secrets = {piece for piece in pieces if len(piece) >= SECRET_CHARS_MIN}
    if parts.password:
        secrets.add(parts.password)  # a short one too
    return tuple(sorted(secrets | {unquote(secret) for secret in secrets}, key=len, reverse=True))


class _HttpRefusal(Exception):  # an HTTP status on its way to a sentence
    def __init__(self, status: int, retry_after: str | None) -> None:
        super().__init__(status)
        self.status = status
        self.retry_after = retry_after


class Transport(AsyncHTTPProvider):
    """web3's provider over a session of ours. Answers come back matched to their requests, or not at all."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        super().__init__(URI(url), exception_retry_configuration=None)
        self.answer_bytes = 0  # size of the last answer
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Make one call; the answer is its JSON-RPC envelope."""
        request = self.form_request(method, params)
        answer = orjson.loads(await self._post(orjson.dumps(request)))
        return _matched([request], [answer])[0]

    async def make_batch_request(
        self, batch_requests: list[tuple[RPCEndpoint, Any]]
    ) -> list[RPCResponse] | RPCResponse:
        """Make many calls in one HTTP request; the answers in the calls' order, or the one error for them all."""
        requests = [self.form_request(method, params) for method, params in batch_requests]
        answer = orjson.loads(await self._post(orjson.dumps(requests)))
        if isinstance(answer, dict) and answer.get("error") is not None:
            return cast(RPCResponse, answer)
        return _matched(requests, answer)

    async def disconnect(self) -> None:
        """Close the session; a later call opens another."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, body: bytes) -> bytes:
        session = self._session = self._session or self._new_session()
        async with asyncio.timeout(self._timeout_seconds):
            try:
                return await self._exchange(session, body)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                # An idle connection that the server had closed. All our calls only read: asking again is safe.
                return await self._exchange(session, body)

    def _new_session(self) -> aiohttp.ClientSession:
        tls = certificates.context()
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=KEEPALIVE_SECONDS, ssl=tls),
            headers={**self.get_request_headers(), "User-Agent": f"reconsup/{__version__}"},
            timeout=aiohttp.ClientTimeout(total=None),  # ours is around the whole exchange
        )

    async def _exchange(self, session: aiohttp.ClientSession, body: bytes) -> bytes:
        async with session.post(self._url, data=body, allow_redirects=False) as response:
            if response.status != 200:
                raise _HttpRefusal(response.status, response.headers.get("Retry-After"))
            answer = bytearray()
            async for piece in response.content.iter_any():
                answer += piece
                if len(answer) > ANSWER_BYTES_MAX:
                    response.close()
                    raise AnswerTooLarge(f"sent more than {ANSWER_BYTES_MAX / 2**20:g} MiB in one answer")
            self.answer_bytes = len(answer)
            return bytes(answer)


def _matched(requests: Sequence[RPCRequest], answers: object) -> list[RPCResponse]:
    """Put answers in the order of their requests; each id must be there exactly once and nothing else."""
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise ChainInconsistent("sent an answer that is not JSON-RPC")
    by_id = {answer["id"]: answer for answer in answers if type(answer.get("id")) is int}
    wanted = [request["id"] for request in requests]
    if len(answers) != len(wanted) or by_id.keys() != set(wanted):
        raise ChainInconsistent(f"sent {len(answers)} answers to {len(wanted)} calls, not one for each call's id")
    return [by_id[each] for each in wanted]


class Endpoint:
    """One network's endpoint. Only ChainUnavailable and ChainInconsistent leave `call` and `batch`."""

    def __init__(
        self,
        network: str,
        url: str,
        timeout_seconds: float,
        on_call: OnCall = lambda *_: None,
        on_wait: OnWait = lambda _: None,
    ) -> None:
        self.network = network
        self.name = _shown(url)
        self._secrets = _secrets(url)
        self._timeout_seconds = timeout_seconds
        self._on_call = on_call
        self._on_wait = on_wait
        self._transport = Transport(url, timeout_seconds)
        self._rate = Rate()

    @property
    def answer_bytes(self) -> int:
        """Size of the last answer, decompressed."""
        return self._transport.answer_bytes

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Start with fresh connections. Nothing is asked yet: an endpoint that is away stops nothing."""
        await self._transport.disconnect()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.disconnect()

    async def call(self, method: str, *params: Any) -> Any:
        """Return the result of one call (None is JSON's null); a refusal is ChainUnavailable."""
        (answer,) = await self._metered([(method, params)], self._one)
        return self.accepted(answer, method)

    async def batch(self, calls: Sequence[Call]) -> list[Any]:
        """Return a result or a Refusal for each call, in their order, from one HTTP request."""
        return await self._metered(calls, self._many)

    def accepted(self, answer: Any, method: str) -> Any:
        """Return an answer of `batch`, or raise ChainUnavailable if it is a Refusal."""
        if not isinstance(answer, Refusal):
            return answer
        quoted = f"{method}: {answer.message} ({answer.code})"
        if answer.is_throttling:
            raise Throttled(self.says(f"is throttling {quoted}"), answer.retry_after_seconds)
        if answer.is_too_large:
            raise AnswerTooLarge(self.says(f"refuses the size of {quoted}"))
        raise CallRefused(self.says(f"refuses {quoted}"))

    def says(self, what: str) -> str:
        """Begin a message with whom it is about."""
        return f"{self.network}: {self.name} {what}"

    async def _one(self, calls: Sequence[Call]) -> list[Any]:
        ((method, params),) = calls
        return [self._result(await self._transport.make_request(RPCEndpoint(method), params))]

    async def _many(self, calls: Sequence[Call]) -> list[Any]:
        answers = await self._transport.make_batch_request([(RPCEndpoint(each), params) for each, params in calls])
        if isinstance(answers, list):
            return [self._result(answer) for answer in answers]
        return [self._result(answers)] * len(calls)

    def _result(self, answer: RPCResponse) -> Any:
        error = cast(Any, answer.get("error"))
        if error is None and "result" in answer:
            return answer["result"]
        if not isinstance(error, dict) or type(error.get("code")) is not int:
            raise ChainInconsistent("sent an answer with neither a result nor an error")
        return Refusal(error["code"], self._clean(str(error.get("message", ""))), pauses.from_data(error.get("data")))

    async def _metered(self, calls: Sequence[Call], make: Callable[[Sequence[Call]], Any]) -> list[Any]:
        self._on_wait((seconds := self._rate.take_turn(time.monotonic())) + self._timeout_seconds)
        if seconds > 0:
            await asyncio.sleep(seconds)
        started = time.monotonic()
        answers: list[Any] = []
        failure: Failure | None = None
        try:
            answers = await make(calls)
        except (ChainUnavailable, ChainInconsistent, _HttpRefusal, aiohttp.ClientError, OSError, ValueError) as error:
            failure = self._failure(error)
        seconds = time.monotonic() - started
        outcomes = [_outcome(failure or answer) for answer in answers or [failure] * len(calls)]
        if "throttled" in outcomes:
            self._rate.was_throttled()
        else:
            self._rate.was_answered()
        methods = [method for method, _ in calls]
        for (method, outcome), count in Counter(zip(methods, outcomes, strict=True)).items():
            self._on_call(self.network, method, outcome, seconds, count)
        if failure is not None:
            raise failure  # outside the except: the cause is left behind, its text may hold the URL
        return answers

    def _failure(self, error: Exception) -> Failure:
        """Translate what went wrong on the way into one of our two errors and one sentence."""
        match error:
            case ChainInconsistent():
                return ChainInconsistent(self.says(str(error)))
            case AnswerTooLarge():
                return AnswerTooLarge(self.says(str(error)))
            case TimeoutError():
                return AnswerTooSlow(self.says(f"did not answer within {self._timeout_seconds:g} s"))
            case _HttpRefusal(status=413):
                return AnswerTooLarge(self.says("refuses a request of this size (HTTP 413)"))
            case _HttpRefusal(status=429):
                return Throttled(self.says("is throttling us (HTTP 429)"), pauses.from_header(error.retry_after))
            case _HttpRefusal():
                trouble = _status_trouble(error.status)
                return ChainUnavailable(self.says(trouble), pauses.from_header(error.retry_after))
        return ChainUnavailable(self.says(_connection_trouble(error)))

    def _clean(self, text: str) -> str:
        """Make an endpoint's own words fit for a log: one line, not long, without our secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return line if len(line) <= QUOTED_CHARS_MAX else line[:QUOTED_CHARS_MAX] + "…"


def _outcome(answer: Any) -> str:
    match answer:
        case ChainInconsistent():
            return "inconsistent"
        case AnswerTooSlow():
            return "timeout"
        case Throttled():
            return "throttled"
        case Refusal():
            return "throttled" if answer.is_throttling else "error"
        case ChainUnavailable():
            return "error"
    return "ok"


def _status_trouble(status: int) -> str:
    if status in (401, 403):
        return f"does not let us in (HTTP {status}): check the key in its URL"
    if status == 404:
        return "knows nothing at this URL (HTTP 404): check its path"
    if 300 <= status < 400:
        return f"redirects us (HTTP {status}): give its final URL"
    return f"answered HTTP {status}"


def _connection_trouble(error: Exception) -> str:
    """Say what is wrong with a connection. Never from the error's own text: that may hold the URL."""
    match error:
        case aiohttp.InvalidURL():
            return "has a URL that is not http(s)://host[:port]/path"
        case aiohttp.ClientConnectorDNSError():
            return "cannot be reached: its host name is not known"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "cannot be reached: TLS fails (certificate or protocol)"
        case aiohttp.ClientConnectorError():
            return f"cannot be reached: {_errno_words(error.os_error)}"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | OSError():
            return "closed the connection before its answer was complete"
        case orjson.JSONDecodeError():
            return "answered something that is not JSON"
    return f"does not speak HTTP as it should ({type(error).__name__})"


def _errno_words(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else "no connection"
