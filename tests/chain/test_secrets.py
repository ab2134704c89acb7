"""chain.rpc: the secret part of an endpoint's URL is in no name, no message, and nothing behind a message."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from reconsup.chain.errors import ChainInconsistent, ChainUnavailable
from tests.chain.conftest import call, endpoint
from tests.support.proxy import Answers, Proxy, Reply, refuse

pytestmark = pytest.mark.service

CHAIN_ID, NUMBER = "eth_chainId", "eth_blockNumber"
KEY = "s3cret-api-key-1234567890"


URLS = {
    "https://eth-mainnet.example.com/v2/KEYKEYKEY": "https://eth-mainnet.example.com/***",
    "https://user:password@node.example:8545": "https://***@node.example:8545",
    "https://node.example/?apikey=KEYKEYKEY": "https://node.example/***",
    "https://node.example/#KEYKEYKEY": "https://node.example/***",
    "http://127.0.0.1:8545": "http://127.0.0.1:8545",
    "http://127.0.0.1:8545/": "http://127.0.0.1:8545/",
    "http://[::1]:8545/x": "http://[::1]:8545/***",
    "http://[::1": "(unreadable URL)",
    "http://host:port/KEYKEYKEY": "(unreadable URL)",
    "KEYKEYKEY": "(unreadable URL)",
    "": "(unreadable URL)",
}


@pytest.mark.parametrize(("url", "shown"), URLS.items())
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert endpoint(url).name == shown


def chained(error: BaseException) -> list[str]:
    """All that a log could print of an error: its text, and that of what it came from."""
    found = []
    step: BaseException | None = error
    while step is not None:
        found += [str(step), repr(step)]
        step = step.__cause__ or step.__context__
    return found


QUOTES: dict[str, Callable[[Answers, Answers], Any]] = {
    "its path": refuse(CHAIN_ID, -32000, f"project {KEY} is over its quota"),
    "its whole url": refuse(CHAIN_ID, -32000, f"see http://user:hunter2!!@node/{KEY}?token=tok-98765"),
    "a refusal of the batch": lambda *_: {"error": {"code": -32600, "message": f"bad key {KEY}"}},
    "a status": lambda *_: Reply(500, KEY.encode()),
    "a redirection": lambda *_: Reply(302, headers={"Location": f"http://127.0.0.1/{KEY}"}),
    "no JSON": lambda *_: Reply(200, KEY.encode()),
    "a wrong id": lambda _, answers: [{**answers[0], "id": 9999}, *answers[1:]],
    "a cut": lambda *_: Reply(200, KEY.encode(), cut=True),
}


@pytest.mark.parametrize("spoil", QUOTES.values(), ids=QUOTES.keys())
def test_no_error_and_nothing_behind_it_holds_a_secret(proxy: Proxy, spoil: Any) -> None:
    """Seen to fail with Endpoint._clean taken out."""
    proxy.spoil = spoil
    url = proxy.url.replace("://", "://user:hunter2!!@") + f"/v3/{KEY}?token=tok-98765"

    for ask in (call, lambda url: _accept_first(url)):
        with pytest.raises((ChainUnavailable, ChainInconsistent)) as caught:
            ask(url)
        for text in chained(caught.value):
            assert not any(secret in text for secret in (KEY, "hunter2", "tok-98765")), text


def _accept_first(url: str) -> None:
    async def run() -> None:
        async with endpoint(url) as node:
            for answer in await node.batch([(CHAIN_ID, []), (NUMBER, [])]):
                node.accepted(answer, CHAIN_ID)

    asyncio.run(run())


def test_an_unreachable_url_is_not_told_either() -> None:
    """Seen to fail with the cause kept (`raise … from error`): aiohttp's errors quote the URL."""
    for url in (f"http://127.0.0.1:1/{KEY}", f"http://{KEY}:99999/", f"htp:/{KEY}"):
        with pytest.raises(ChainUnavailable) as caught:
            call(url)
        assert not any(KEY in text for text in chained(caught.value))


def test_an_endpoints_own_words_are_one_short_line(proxy: Proxy) -> None:
    proxy.spoil = refuse(CHAIN_ID, -32000, "first\nsecond\x1b[31m \t" + "x" * 1000)

    with pytest.raises(ChainUnavailable) as caught:
        call(proxy.url)
    assert "first second [31m xxx" in str(caught.value)
    assert len(str(caught.value)) < 300
