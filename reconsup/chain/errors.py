"""What can go wrong between reconsup and a chain's endpoint, grouped by what the caller can do about it.

These two are all that leaves the chain rooms for an operating error. Their text is one sentence for an operator and
never holds the secret part of an endpoint's address.
"""


class ChainUnavailable(Exception):
    """The endpoint is away, slow, throttling or behind: back off and ask again. It proves nothing about the chain.

    `retry_after_seconds` is the pause the endpoint asked for, None when it named none.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Throttled(ChainUnavailable):
    """The endpoint asks us to come back later."""


class CallRefused(ChainUnavailable):
    """The endpoint answers, and refuses this very call: another endpoint may not."""


class AnswerTooLarge(ChainUnavailable):
    """The endpoint, or our own limit, refuses an answer of this size: ask for less at a time."""


class AnswerTooSlow(ChainUnavailable):
    """The answer did not arrive in time; a smaller one may."""


class Behind(ChainUnavailable):
    """The endpoint's head is lower than what is known of the chain already: another one may be higher."""


class WrongChain(ChainUnavailable):
    """The endpoint shows another chain id or genesis than the network's: the operator must put its URL right."""

    def __init__(self, message: str, *, chain_id: int, genesis_hash: str) -> None:
        super().__init__(message)
        self.chain_id = chain_id
        self.genesis_hash = genesis_hash


class Undecided(ChainUnavailable):
    """Each endpoint answered, but together they do not show what may be written: wait, and ask again."""


class EndpointsDisagree(Undecided):
    """Two endpoints show different chains: one of them is wrong, and nobody can say which."""


class QuorumMissing(Undecided):
    """Fewer endpoints show the same than the operator wants to see."""


class ChainInconsistent(Exception):
    """The endpoint contradicted itself or sent what no chain can hold: refuse the answer, store nothing, alarm.

    A reorg in the middle of a batch, or two nodes behind one address, look like this once; only repetition is a fault.
    """
