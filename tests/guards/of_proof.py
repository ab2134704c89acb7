"""The guards between a node's word and what is stored: the proof of a block, and where its outcome goes."""

from tests.guards.mutants import Mutant, Swap

BACKLOG = "reconsup.store.backlog"
DECODE = "reconsup.chain.decode"
EVM = "reconsup.chain.evm"
LEDGER = "reconsup.store.ledger"
PROCESS = "reconsup.worker.process"
PROOF = "reconsup.chain.proof"
SETTINGS = "reconsup.settings"

LIE_TEST = "tests/chain/test_proof.py::test_whatever_is_removed_or_changed_is_caught"
STORED_TEST = (
    "tests/worker/test_proof.py::test_what_a_node_leaves_out_or_changes_is_not_stored_and_told_truly_it_is_paid"
)
DEFAULT_TEST = "tests/worker/test_proof.py::test_blocks_are_proven_unless_somebody_switches_it_off"
PROVEN_TESTS = "tests/store/test_proven.py"
NATIVE_TESTS = "tests/chain/test_native_logs.py"
NOT_RAISED = "Failed: DID NOT RAISE"

OF_PROOF = {
    "roots that are not compared": Mutant(
        PROOF,
        (Swap("if list_root(found) != _hash(raw_block, key, height):", "if False:"),),
        f"{LIE_TEST}[the last log is missing]",
        "a payment whose log a node left out is never seen, and its request expires",
        fails_with=NOT_RAISED,
    ),
    "a transaction's hash that is not compared": Mutant(
        PROOF,
        (Swap('if keccak(encoded) != bytes.fromhex(tx["hash"][2:]):', "if False:"),),
        f"{LIE_TEST}[a transaction's hash]",
        "a settlement is stored under the hash of another transaction, and can be counted once more",
        fails_with=NOT_RAISED,
    ),
    "a header's hash that is not compared": Mutant(
        PROOF,
        (Swap('is_proven = header_hash(raw_block) == bytes.fromhex(raw_block["hash"][2:])', "is_proven = True"),),
        f"{LIE_TEST}[the time]",
        "roots that a node made up prove whatever it made up with them",
        fails_with=NOT_RAISED,
    ),
    "hex digits that are not counted": Mutant(
        PROOF,
        (Swap("if len(made) * 2 != len(digits):", "if False:"),),
        f"{LIE_TEST}[white space in a topic]",
        "a log can be written so that it proves well and is not read as money",
        fails_with="AssertionError: Regex pattern did not match",
    ),
    "words of any beginning": Mutant(
        PROOF,
        (Swap('if len(text) != 66 or text[:2] != "0x":', "if len(text) != 66:"),),
        f"{LIE_TEST}[another prefix before a topic]",
        "the same: a topic that begins with 0X is a Transfer to the proof and none to the decoder",
        fails_with=NOT_RAISED,
    ),
    "nothing is proven beside an unknown type": Mutant(
        PROOF,
        (Swap("            unknown.add(str(error))\n", "            raise\n"),),
        "tests/chain/test_proof.py::test_beside_an_unknown_type_the_others_are_still_held_to_their_hashes",
        "one strange transaction in a block, and every other one may be changed",
        fails_with=NOT_RAISED,
    ),
    "repr of whatever a node sends": Mutant(
        PROOF,
        (Swap("ascii(value[:20]) if isinstance(value, str) else", "ascii(value) if value else"),),
        "tests/chain/test_proof.py::test_what_a_node_sends_instead_of_a_name_is_told_in_few_words",
        "a node ends every worker with lists in lists, or fills the log",
    ),
    "a proof that is off unless asked for": Mutant(
        EVM,
        (Swap("proves: bool = True", "proves: bool = False"),),
        "tests/chain/test_proof_evm.py::test_blocks_are_proven_after_a_reorg",
        "nobody switches it on",
    ),
    "a block that is only decoded": Mutant(
        EVM,
        (Swap("if not self.proves:", "if height:"),),
        f"{STORED_TEST}[the last log is left out]",
        "what a node leaves out and renumbers is never seen",
        fails_with="ValueError: not enough values to unpack",
    ),
    "a setting that is off unless given": Mutant(
        SETTINGS,
        (Swap("self.block_proof.get(network, True)", "self.block_proof.get(network, False)"),),
        f"{DEFAULT_TEST}[mainnet]",
        "the same",
    ),
    "a worker that does not prove": Mutant(
        PROCESS,
        (Swap("proves=settings.proves_blocks(endpoint.network),", "proves=False,"),),
        f"{DEFAULT_TEST}[sepolia]",
        "the same",
    ),
    "a value beside its log": Mutant(
        DECODE,
        (Swap("if native is not None and not has_native_logs:", "if native is not None:"),),
        f"{NATIVE_TESTS}::test_from_the_given_block_on_the_logs_are_the_native_credits_and_the_values_are_not[42]",
        "with EIP-7708 every payment is counted twice, and half of the money confirms a request",
    ),
    "a log of native value that is a token's": Mutant(
        DECODE,
        (Swap("    if contract == NATIVE_LOGS:\n", "    if has_native_logs and contract == NATIVE_LOGS:\n"),),
        f"{NATIVE_TESTS}::test_before_it_the_logs_of_that_address_are_nothing[None]",
        "native transfers are credits of a token that nobody made",
    ),
    "a value without its log": Mutant(
        DECODE,
        (Swap("            _check_is_logged(native, tx, logged, where)\n", "            pass\n"),),
        f"{NATIVE_TESTS}::test_a_value_without_its_log_is_refused_where_logs_are_all_that_counts",
        "a setting that names the wrong block makes every native payment invisible",
        fails_with=NOT_RAISED,
    ),
    "an unproven block above the fork": Mutant(
        LEDGER,
        (Swap("min(cursor.unproven_height, fork.height)", "cursor.unproven_height"),),
        f"{PROVEN_TESTS}::test_a_rollback_leaves_no_unproven_height_above_the_fork[unproven2-102]",
        "a network counts as unproven because of a block that is gone",
    ),
    "a rollback that forgets what was unproven": Mutant(
        LEDGER,
        (Swap("min(cursor.unproven_height, fork.height)", "None"),),
        f"{PROVEN_TESTS}::test_a_rollback_leaves_no_unproven_height_above_the_fork[unproven1-101]",
        "a network counts as proven although a block below the fork was not",
    ),
    "unproven for ever": Mutant(
        BACKLOG,
        (Swap("COALESCE(k.unproven_height < k.tail_start, true)", "k.unproven_height IS NULL"),),
        f"{PROVEN_TESTS}::test_a_network_is_proven_until_a_block_is_not_and_again_when_the_tail_has_left_it",
        "one strange block, and nobody is told any more when the proof really fails",
    ),
    "blocks without a pause": Mutant(
        EVM,
        (Swap("                await asyncio.sleep(0)", "                pass"),),
        "tests/chain/test_proof_evm.py::test_others_on_the_loop_come_between_the_blocks_of_a_batch",
        "a worker that proves many blocks is taken for a hung one",
    ),
}  # fmt: skip
