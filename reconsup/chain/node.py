"""One endpoint's standing among those of its network: whether it may be asked now, and whether its head moves.

Nothing here asks anything or knows a clock: `Nodes` tells what happened and when, in seconds of its own clock.
"""

from dataclasses import dataclass
from enum import StrEnum

from reconsup.chain.block import Header
from reconsup.chain.errors import (
    AnswerTooSlow,
    Behind,
    CallRefused,
    ChainInconsistent,
    ChainUnavailable,
    Throttled,
    WrongChain,
)
from reconsup.chain.evm import ChainIdentity, EvmChain

ASIDE_SECONDS_MIN = 1.0
ASIDE_SECONDS_MAX = 300.0
TELL_AGAIN_SECONDS = 3600.0
PASSING_FAILURES = 3  # every provider throttles now and then, and is a block behind another
STUCK_BLOCKS = 32
STUCK_SECONDS = 60.0  # blocks in one jump are a claim, not growth: a head must have stood still as long, too


class Aside(StrEnum):
    """Why an endpoint is set aside."""

    UNAVAILABLE = "unavailable"
    REFUSES = "refuses"  # only what was asked: for a moment, so that who needs something else does not lose it
    SLOW = "slow"
    THROTTLED = "throttled"
    INCONSISTENT = "inconsistent"
    WRONG_CHAIN = "wrong_chain"
    BEHIND = "behind"
    STUCK = "stuck"


TODO = {
    Aside.WRONG_CHAIN: "it shows another chain than the database was read from; correct "
    "PAYMENT_REQUEST_EVM_RPC_URLS_JSON. It is not used until then",
    Aside.INCONSISTENT: "nothing while another endpoint answers; if it is told again and again, use another provider",
    Aside.STUCK: "its head does not move while others' do: restart that node, or use another one",
}
TODO_ELSE = "nothing while another endpoint answers; if it stays away, put it right or remove it"


def cause(error: ChainUnavailable | ChainInconsistent) -> Aside:
    """What an error says of the endpoint that it came from."""
    match error:
        case ChainInconsistent():
            return Aside.INCONSISTENT
        case WrongChain():
            return Aside.WRONG_CHAIN
        case Throttled():
            return Aside.THROTTLED
        case AnswerTooSlow():
            return Aside.SLOW
        case CallRefused():
            return Aside.REFUSES
        case Behind():
            return Aside.BEHIND
    return Aside.UNAVAILABLE


@dataclass(slots=True, eq=False)
class Node:
    """One endpoint's chain, and what is known of it. `shown` is who it last said it is, `is_met` whether that holds.

    `aside` and `until`: why and how long it is set aside; `not_before`: the end of a pause that it asked for itself.
    """

    chain: EvmChain
    shown: ChainIdentity | None = None
    is_met: bool = False
    aside: Aside | None = None
    until: float = 0.0
    not_before: float = 0.0
    failures: int = 0
    told: Aside | None = None
    told_at: float = 0.0
    head: int = -1
    head_hash: str = ""
    moved_at: float = 0.0
    top_when_moved: int = -1

    @property
    def name(self) -> str:
        """Where it is, without secrets."""
        return self.chain.endpoint.name

    def is_usable(self, now: float) -> bool:
        """Whether it may be asked: not set aside, or for long enough."""
        return now >= max(self.until, self.not_before)

    def set_aside(self, why: Aside, now: float, retry_after_seconds: float | None = None) -> None:
        """Leave it alone for a time that doubles with each failure, and as long as it asked for."""
        self.failures += why is not Aside.REFUSES
        self.aside = why
        doublings = 0 if why is Aside.REFUSES else min(self.failures - 1, 20)
        self.until = max(self.until, now + min(ASIDE_SECONDS_MIN * 2**doublings, ASIDE_SECONDS_MAX))
        self.not_before = max(self.not_before, now + (retry_after_seconds or 0.0))

    def has_worked(self, *, wholly: bool) -> None:
        """It did what was asked; a witness, who was asked little, is trusted again by and by."""
        self.aside, self.until = None, 0.0
        self.failures = 0 if wholly else self.failures // 2

    def must_tell(self, now: float) -> bool:
        """Whether the operator hears that it is set aside: when it is news, and from time to time."""
        is_passing = self.aside in (Aside.THROTTLED, Aside.BEHIND, Aside.REFUSES) and self.failures < PASSING_FAILURES
        is_news = self.told is None or (self.aside is not self.told and self.aside in (Aside.WRONG_CHAIN, Aside.STUCK))
        if is_passing or not (is_news or now >= self.told_at + TELL_AGAIN_SECONDS):
            return False
        self.told, self.told_at = self.aside, now
        return True

    def saw(self, latest: Header, top: int, now: float) -> None:
        """Note its head; `top` is the highest one that any endpoint of the network showed, this one included."""
        if (latest.height, latest.block_hash) != (self.head, self.head_hash):
            self.head, self.head_hash = latest.height, latest.block_hash
            self.moved_at, self.top_when_moved = now, top

    def is_stuck(self, top: int, now: float) -> bool:
        """Whether its head stands still while the network's goes on."""
        return top - self.top_when_moved >= STUCK_BLOCKS and now - self.moved_at >= STUCK_SECONDS
