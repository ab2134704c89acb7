"""chain.state: what a proof of an account says is what the chain holds, and no change of it says anything else.

The accounts are go-ethereum's and anvil's; the tries of the property tests are made by another maker
(tests.chain.tries), whose roots the program's own trie must have as well.
"""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from reconsup.chain import proof, state
from reconsup.chain.errors import ChainInconsistent
from reconsup.chain.state import State
from reconsup.demo.anvil import Anvil
from tests.chain.test_fuzz import junk
from tests.chain.tries import Trie, rlp
from tests.chain.vectors import EXECUTION_APIS, HEADERS, PROOFS

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)
LONG = settings(max_examples=5_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])

CONTRACT = PROOFS["contract"]
STORED = PROOFS["with storage"]
BLOCK = EXECUTION_APIS["block"]
STRANGER = "0x" + "5c" * 20


def hashed(digits: str) -> bytes:
    return proof.keccak(bytes.fromhex(digits[2:]))


# -- what is true


def test_an_account_of_go_ethereum_is_proven_against_its_block() -> None:
    """Its block is the one whose receipts are proven in test_proof: another vector, of the same chain."""
    root = state.root(BLOCK, BLOCK["hash"])
    assert root is not None
    assert state.account(CONTRACT, CONTRACT["address"], root) == State(0x3F, 0)


def test_what_is_not_there_has_nothing_and_that_is_proven() -> None:
    """By the leaf of another account, and by an empty place in a branch: of accounts, and of go-ethereum's storage."""
    root = hashed(STORED["accountProof"][0])
    assert state.account(STORED, STORED["address"], root) == State(1, 1)
    nodes = [bytes.fromhex(each[2:]) for each in STORED["absentProof"]]
    assert state.value(nodes, proof.keccak((1).to_bytes(32)), bytes.fromhex(STORED["storageHash"][2:])) is None
    assert state.account({"accountProof": []}, STRANGER, proof.EMPTY_ROOT) == State(0, 0)
    assert state.account({"accountProof": ["0x80"]}, STRANGER, proof.EMPTY_ROOT) == State(0, 0)


@pytest.mark.service
def test_accounts_of_anvil_are_proven_at_each_block_whatever_they_hold(anvil: Anvil) -> None:
    addresses = [f"0x{0xBEEF << 140 | number:040x}" for number in range(40)]
    held = {address: number * 10**17 + number for number, address in enumerate(addresses)}
    for address, amount in held.items():
        anvil.rpc("anvil_setBalance", address, hex(amount))
    anvil.rpc("anvil_mine", "0x1")
    block = anvil.rpc("eth_getBlockByNumber", "latest", False)
    anvil.rpc("anvil_mine", "0x1")  # what is set by hand changes the latest block's state as well
    for address in addresses[1:]:
        anvil.rpc("anvil_setBalance", address, "0x0")
    anvil.rpc("anvil_setNonce", addresses[0], "0x7")
    anvil.rpc("anvil_mine", "0x1")
    emptied = anvil.rpc("eth_getBlockByNumber", "latest", False)
    for raw, expected in ((block, held), (emptied, dict.fromkeys(addresses, 0))):
        root = state.root(raw, raw["hash"])
        assert root is not None
        for address in (*addresses, STRANGER):
            answer = anvil.rpc("eth_getProof", address, [], {"blockHash": raw["hash"]})
            nonce = 7 if raw is emptied and address == addresses[0] else 0
            assert state.account(answer, address, root) == State(expected.get(address, 0), nonce)


# -- the root


@pytest.mark.parametrize("raw", HEADERS.values(), ids=HEADERS.keys())
def test_the_root_of_a_header_of_each_fork_is_known(raw: dict[str, Any]) -> None:
    is_first_of_a_development_chain = raw["number"] == "0x0" and raw["stateRoot"][2:] == proof.EMPTY_ROOT.hex()
    expected = None if is_first_of_a_development_chain else bytes.fromhex(raw["stateRoot"][2:])
    assert state.root(raw, raw["hash"]) == expected


def test_the_root_of_another_block_or_of_a_changed_header_is_refused() -> None:
    """Seen to fail when the hash is not compared with the one that was asked for."""
    (other, *_) = HEADERS.values()
    changed = BLOCK | {"stateRoot": other["stateRoot"]}
    for raw in (other, changed, None, {}, BLOCK | {"hash": None}):
        with pytest.raises(ChainInconsistent):
            state.root(raw, BLOCK["hash"])


def test_a_header_of_unknown_fields_proves_nothing_and_one_with_them_beside_its_hash_does() -> None:
    assert state.root(BLOCK | {"novelty": "0x1", "extraData": "0x01"}, BLOCK["hash"]) is None
    assert state.root(BLOCK | {"novelty": "0x1"}, BLOCK["hash"]) is not None


# -- what is not


def check(answer: Any, address: str, root: bytes, truth: State) -> None:
    """A changed answer is refused, or it still says the truth (what was changed is not needed)."""
    try:
        found = state.account(answer, address, root)
    except ChainInconsistent:
        return
    assert found == truth


def test_every_digit_of_a_proof_counts() -> None:
    """Seen to fail without the comparison of a node's hash."""
    root = hashed(CONTRACT["accountProof"][0])
    for index, node in enumerate(CONTRACT["accountProof"]):
        for at in range(2, len(node), 7):
            changed = copy.deepcopy(CONTRACT)
            changed["accountProof"][index] = node[:at] + ("1" if node[at] != "1" else "2") + node[at + 1 :]
            with pytest.raises(ChainInconsistent, match="does not come out"):
                state.account(changed, CONTRACT["address"], root)


def test_a_proof_that_lacks_a_node_or_has_them_in_another_order_is_refused() -> None:
    root = hashed(CONTRACT["accountProof"][0])
    top, middle, leaf = CONTRACT["accountProof"]
    for nodes in ([], [top], [top, middle], [middle, leaf], [top, leaf], [leaf, middle, top], [top, top, middle, leaf]):
        with pytest.raises(ChainInconsistent, match="does not come out"):
            state.account({"accountProof": nodes}, CONTRACT["address"], root)
    assert state.account({"accountProof": [top, middle, leaf, top]}, CONTRACT["address"], root) == State(0x3F, 0)


def test_a_proof_of_another_account_says_nothing_of_this_one() -> None:
    """Its way leads elsewhere: there nodes are missing. Seen to fail when the key is not the address's."""
    root = hashed(CONTRACT["accountProof"][0])
    with pytest.raises(ChainInconsistent):
        state.account(CONTRACT, STRANGER, root)


ACCOUNTS = {
    "three fields": [b"\x01", b"\x02", bytes(32)],
    "five fields": [b"\x01", b"\x02", bytes(32), bytes(32), b""],
    "a short root": [b"\x01", b"\x02", bytes(31), bytes(32)],
    "too much": [b"\x01", bytes(33), bytes(32), bytes(32)],
}


@pytest.mark.parametrize("fields", ACCOUNTS)
def test_an_account_of_another_make_is_refused(fields: str) -> None:
    trie = Trie({hashed(STRANGER): rlp(ACCOUNTS[fields])})
    answer = {"accountProof": ["0x" + node.hex() for node in trie.proof(hashed(STRANGER))]}
    with pytest.raises(ChainInconsistent):
        state.account(answer, STRANGER, trie.root)


# -- any trie, any change

keys = some.binary(min_size=2, max_size=2)
values = some.one_of(some.binary(min_size=1, max_size=4), some.binary(min_size=30, max_size=70))
tries = some.dictionaries(keys, values, max_size=40).map(Trie)


def any_trie_tells_what_it_holds(trie: Trie, key: bytes) -> None:
    pairs = sorted((each.hex(), value) for each, value in trie.pairs.items())
    if pairs:
        assert proof.keccak(proof._node(pairs, 0, len(pairs), 0)) == trie.root
    for each in (key, *trie.pairs):
        assert state.value(trie.proof(each), each, trie.root) == trie.pairs.get(each)


def no_change_of_a_proof_tells_anything_else(data: some.DataObject) -> None:
    trie, other = data.draw(tries), data.draw(tries)
    key = data.draw(some.one_of(keys, some.sampled_from(sorted(trie.pairs)))) if trie.pairs else data.draw(keys)
    nodes = changed(data, trie.proof(key), other.proof(key))
    try:
        found = state.value(nodes, key, trie.root)
    except (ValueError, IndexError, TypeError):
        return
    assert found == trie.pairs.get(key)


def changed(data: some.DataObject, nodes: list[bytes], others: list[bytes]) -> list[bytes]:
    """Some changes to a list of nodes."""
    for _ in range(data.draw(some.integers(1, 3))):
        at = data.draw(some.integers(0, len(nodes)))
        match data.draw(some.sampled_from(["drop", "flip", "cut", "put", "swap", "other"])):
            case "drop":
                nodes = nodes[:at] + nodes[at + 1 :]
            case "flip" if at < len(nodes) and nodes[at]:
                place = data.draw(some.integers(0, len(nodes[at]) - 1))
                byte = bytes([nodes[at][place] ^ data.draw(some.integers(1, 255))])
                nodes = [*nodes[:at], nodes[at][:place] + byte + nodes[at][place + 1 :], *nodes[at + 1 :]]
            case "cut" if at < len(nodes):
                nodes = [*nodes[:at], nodes[at][: data.draw(some.integers(0, len(nodes[at])))], *nodes[at + 1 :]]
            case "put":
                nodes = [*nodes[:at], data.draw(some.binary(max_size=80)), *nodes[at:]]
            case "swap":
                nodes = nodes[::-1]
            case "other":
                nodes = nodes[:at] + others[at:]
    return nodes


def whatever_a_node_answers_is_read_or_refused(answer: Any, nodes: list[Any]) -> None:
    root = hashed(CONTRACT["accountProof"][0])
    for each in (answer, {"accountProof": answer}, {"accountProof": nodes}):
        check(each, CONTRACT["address"], root, State(0x3F, 0))
    with_junk = {"accountProof": [*CONTRACT["accountProof"][:1], *nodes]}
    check(with_junk, CONTRACT["address"], root, State(0x3F, 0))


def whatever_is_hashed_is_read_or_refused(node: bytes, key: bytes) -> None:
    """Not even bytes that have the right hash, which no node can find, do more than raise."""
    try:
        state.value([node], key, proof.keccak(node))
    except (ValueError, IndexError, TypeError):
        return


some_nodes = some.one_of(
    some.binary(max_size=120),
    some.lists(some.binary(max_size=33), min_size=1, max_size=17).map(rlp),
    some.integers(1, 3000).map(lambda depth: b"\xc1" * depth + b"\xc0"),
)
PROPERTIES = {
    "tells": (any_trie_tells_what_it_holds, (tries, keys)),
    "changed": (no_change_of_a_proof_tells_anything_else, (some.data(),)),
    "junk": (whatever_a_node_answers_is_read_or_refused, (junk, some.lists(junk, max_size=3))),
    "hashed": (whatever_is_hashed_is_read_or_refused, (some_nodes, keys)),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_quick_properties_of_proofs_hold(name: str) -> None:
    """Seen to fail (changed) without the comparison of a node's hash."""
    law, given_ = PROPERTIES[name]
    QUICK(given(*given_)(law))()


@pytest.mark.long
@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_of_proofs_hold(name: str) -> None:
    law, given_ = PROPERTIES[name]
    LONG(given(*given_)(law))()
