"""The guards of the balance audit: what may be settled by it, by whom, and what may not expire without it."""

from tests.guards.mutants import Mutant, Swap

AUDIT = "reconsup.store.audit"
FINDINGS = "reconsup.store.findings"
EXPLAIN = "reconsup.worker.explain"
AUDITOR = "reconsup.worker.auditor"
DECISION = "reconsup.payments.decision"
VIEW = "reconsup.store.view"
BALANCES = "reconsup.chain.balances"
STATE = "reconsup.chain.state"
SURETY = "reconsup.worker.surety"

TESTS = "tests/worker/test_audit.py"
SURE = "tests/worker/test_surety.py"
MEANWHILE = f"{TESTS}::test_what_changes_between_the_question_and_the_write_leaves_nothing_half_written"
MINED_AGAIN = f"{TESTS}::test_money_that_a_reorg_takes_away_is_taken_back_and_counts_again_when_it_is_mined_again"
SAME = "        if not _is_same(case, await _read(transaction, parameters), finding.height):\n            return None\n"

OF_AUDIT = {
    "audit: an expiry that asks for no mark": Mutant(
        DECISION,
        (Swap(" and not _waits_for_audit(request, facts, policy):\n", ":\n"),),
        f"{TESTS}::test_no_native_request_expires_before_its_audit",
        "a request that was paid by a contract expires while the node cannot tell balances",
    ),
    "audit: an expiry that does not ask whether all is explained": Mutant(
        DECISION,
        (Swap(" and facts.unexplained_minor:", " and False:"),),
        f"{TESTS}::test_a_balance_that_cannot_be_placed_holds_back_the_expiry_with_an_alarm_and_no_confirmation",
        "a request that was paid by a contract expires because nobody can say in which block",
    ),
    "audit: a mark that is believed by its height": Mutant(
        VIEW,
        (Swap("           AND b.block_hash = r.reconcile_audited_hash) END", "         ) END"),),
        f"{TESTS}::test_a_mark_whose_block_a_reorg_took_away_is_void",
        "a request expires by a balance of another branch",
    ),
    "audit: a finding of one who lost the scan lease": Mutant(
        AUDIT,
        (Swap("AND k.scan_lease_owner = %(owner)s AND k.scan_lease_epoch = %(epoch)s AND k.stop_", "AND k.stop_"),),
        f"{MEANWHILE}[another holder]",
        "two workers audit one network, and each settles what it finds",
    ),
    "audit: a finding of a stopped network": Mutant(
        AUDIT,
        (Swap("AND k.scan_lease_epoch = %(epoch)s AND k.stop_reason IS NULL ", "AND k.scan_lease_epoch = %(epoch)s "),),
        f"{MEANWHILE}[stop]",
        "money is settled on a chain that has contradicted itself",
    ),
    "audit: a finding in a block that is gone": Mutant(
        FINDINGS,
        (Swap(" or not await are_stored(transaction, parameters)", ""), Swap(SAME, "")),
        f"{MEANWHILE}[reorg]",
        "money of an orphaned block is settled after the rollback, and nothing takes it back",
    ),
    "audit: a finding that does not ask what was settled meanwhile": Mutant(
        FINDINGS,
        (Swap(SAME, ""),),
        f"{MEANWHILE}[payment]",
        "the same money is settled by the admission and by the audit: it counts twice",
    ),
    "audit: a finding for an address that was changed": Mutant(
        FINDINGS,
        (Swap(SAME, ""),),
        f"{MEANWHILE}[address]",
        "money of another address confirms the request",
    ),
    "audit: what was there before the request is a payment": Mutant(
        EXPLAIN,
        (Swap("return oldest, rest, rest.rest_minor, 0", "return oldest, _Rest(0, 0), 0, 0"),),
        f"{TESTS}::test_what_was_there_before_the_request_is_not_money_for_it",
        "an address with money on it is paid the moment it is handed out",
    ),
    "audit: no question for nonces before an expiry": Mutant(
        AUDITOR,
        (Swap("if state == State(each.expected_minor, each.nonce)", "if state.balance_minor == each.expected_minor"),),
        f"{TESTS}::test_an_address_that_sends_its_money_on_is_accounted_for[traces-True]",
        "money that came and went between two audits is never seen, and the request expires",
    ),
    "audit: a difference that forgets when it was first seen": Mutant(
        FINDINGS,
        (Swap("OR (o.metadata -> 'reorg' ->> 'block_hash' = o.block_hash AND o.amount", "OR (false AND o.amount"),),
        f"{MINED_AGAIN}[does not trace]",
        "a payment in time becomes a late one by a reorg",
    ),
    "audit: a note that its own block belies": Mutant(
        EXPLAIN,
        (Swap("        if oldest > note.height:\n            return", "        if True:\n            return"),),
        f"{TESTS}::test_the_same_blocks_come_back_bring_their_money_back",
        "after a reorg there and back a payment stays taken back for good",
    ),
    "audit: a node that ignores the override": Mutant(
        BALANCES,
        (
            Swap("    if not words or words[0] != len(addresses) * ADDRESS_BYTES:\n", "    if False:\n"),
            Swap("words[1::2], words[2::2]", "words[1::2] or [], words[2::2] or []"),
        ),
        "tests/chain/test_balances.py::test_a_node_that_ignores_the_override_is_not_believed_to_say_that_all_is_empty",
        "every balance is taken for nothing, and requests expire that were paid",
    ),
    "audit: a balance that is told otherwise than it is proven": Mutant(
        SURETY,
        (Swap("        if truth is not None and word != truth:\n", "        if False:\n"),),
        f"{SURE}::test_a_balance_that_a_node_invents_settles_nothing_and_is_told",
        "one node that lies about a balance confirms a request that nobody paid",
    ),
    "audit: an expiry by what a node tells": Mutant(
        SURETY,
        (
            Swap("    if len(states) == len(addresses):\n", "    if False:\n"),
            Swap("    _compare(chain, page.block_hash, told, proven)\n", ""),
        ),
        f"{SURE}::test_what_a_node_hides_lets_nothing_expire",
        "one node that hides a balance lets a request expire that was paid",
    ),
    "audit: a proof that is believed node by node": Mutant(
        STATE,
        (Swap(" or proof.keccak(node) != name:", ":"),),
        "tests/chain/test_state.py::test_every_digit_of_a_proof_counts",
        "a node proves whatever it likes",
        fails_with="Failed: DID NOT RAISE",
    ),
    "audit: a state root of a header that is not hashed": Mutant(
        STATE,
        (Swap("    if proof.doubt_header(raw_block, block_hash) is not None:\n", "    if False:\n"),),
        "tests/chain/test_accounts.py::test_a_node_that_shows_another_state_root_is_one",
        "a node proves a state of its own making",
        fails_with="Failed: DID NOT RAISE",
    ),
    "audit: what an address began with is not proven": Mutant(
        EXPLAIN,
        (Swap("    looked = {at}\n", "    looked: set[int] = set()\n"),),
        f"{SURE}::test_a_node_that_says_that_the_money_was_there_before_is_not_believed",
        "a node says that a payment was there before the request, and it expires",
    ),
    "audit: parts that are more than the whole": Mutant(
        SURETY,
        (Swap("(without_given(it), True) if is_proven", "(it.finding, True) if is_proven"),),
        f"{SURE}::test_a_trace_makes_no_more_of_a_payment_than_its_balance_shows[1]",
        "a wei and a trace that lies confirm a request",
    ),
    "audit: one node's word where there are two": Mutant(
        "reconsup.chain.nodes",
        (Swap("            if theirs != told:\n", "            if False:\n"),),
        f"{SURE}::test_of_two_endpoints_that_prove_nothing_both_must_tell_the_same[hides-0]",
        "of two nodes the one that lies decides",
    ),
}
