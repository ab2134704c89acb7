"""The guards between requests and their chain: cursor, ledger, admission, what is seen, and who may still write."""

from tests.guards.mutants import Mutant, Swap
from tests.guards.of_leases import ANY_EPOCH, ANY_OWNER, FENCE_TESTS

ADMISSION = "reconsup.store.admission"
CURSOR = "reconsup.store.cursor"
DATABASE = "reconsup.store.database"
LEDGER = "reconsup.store.ledger"
MATCHING = "reconsup.store.matching"
RECONCILER = "reconsup.worker.reconciler"
VIEW = "reconsup.store.view"

ADMISSION_TESTS = "tests/store/test_admission.py"
LEDGER_TESTS = "tests/store/test_ledger.py"
LEDGER_FENCE_TESTS = "tests/store/test_ledger_fence.py"
CURSOR_FENCE_TEST = f"{LEDGER_FENCE_TESTS}::test_each_part_of_the_cursors_fence_counts"
TRUST_TESTS = "tests/worker/test_trust.py"
EXPIRY_TESTS = "tests/worker/test_expiry.py"
CREDIT_TEST = f"{LEDGER_TESTS}::test_a_credit_goes_to_the_request_with_its_address_token_and_chain"

ADVANCE = """        if not await transaction.rows(_ADVANCE, fence(cursor) | moved | {"lease": lease_seconds}):
            raise _FencedError
"""
INSERT = "        await transaction.send(_INSERT_BLOCKS"
AFTER = "        after = replace(\n            cursor,\n            next_height=last"
CURSOR_LOCK = ' FOR NO KEY UPDATE\n"""'
LOCK = "        await transaction.send(_LOCK_CURSOR, parameters)\n"
JOIN = "        joins = await joining.open_for(transaction, batch.network, owner=batch.owner, claims=claims)\n"
ADMIT = "        admitted = await transaction.rows(_ADMIT, parameters)\n"
SETTLE_TAIL = "        await transaction.send(_SETTLE_TAIL, parameters)\n"
TOUCH = '        touched, refused = await _touch(transaction, span | {"against": due_against}, is_careful=is_careful)\n'
SETTLE = "        settled = await transaction.rows(_SETTLE_BLOCKS, span)\n"
TAIL = "        tail = await transaction.rows("
PAID = '+ PAID_BY_BLOCKS\n    + """))\n'
ORPHANED = '+ ORPHANED\n    + """))\n'
BELONGS = "AND r.chain_id = "

NO_GAP = {
    "admission without the lock on the cursor": Mutant(
        ADMISSION,
        (Swap(CURSOR_LOCK, '\n"""'),),
        f"{ADMISSION_TESTS}::test_an_admission_that_meets_a_commit_under_way_waits_and_finds_its_credits",
        "a payment in the block that is just being stored is never seen, and the request expires",
    ),
    "repair without the lock on the cursor": Mutant(
        ADMISSION,
        (Swap(CURSOR_LOCK, '\n"""'),),
        "tests/store/test_repair.py::test_a_repair_waits_for_a_rollback_under_way_and_then_sees_its_proof",
        "money that a reorg is just taking back is made good again, and confirms a request",
    ),
    "admission that shares the cursor": Mutant(
        ADMISSION,
        (Swap(CURSOR_LOCK, ' FOR SHARE\n"""'),),
        f"{ADMISSION_TESTS}::test_an_admission_does_not_overtake_a_commit_that_waits",
        "while many requests are admitted no block is stored: all payments are seen late",
    ),
    "admission as one statement": Mutant(
        ADMISSION,
        (
            Swap(
                LOCK + JOIN + ADMIT + SETTLE_TAIL,
                "        joins = None\n"
                '        one = "WITH shared AS (" + _LOCK_CURSOR + "), admitted AS (" + _ADMIT + "), settled AS ("\n'
                '        one += _SETTLE_TAIL + ") SELECT admitted.id FROM shared, admitted"\n'
                "        admitted = await transaction.rows(one, parameters)\n",
            ),
        ),
        f"{ADMISSION_TESTS}::test_an_admission_that_meets_a_commit_under_way_waits_and_finds_its_credits",
        "the same: the tail is read as it was before the block that was waited for",
    ),
    "commit as one statement": Mutant(
        LEDGER,
        (
            Swap(ADVANCE + INSERT, INSERT),
            Swap(
                TAIL,
                '        one = "WITH advanced AS (" + _ADVANCE + ")" + _SETTLE_BLOCKS\n'
                '        every = span | fence(cursor) | moved | {"lease": lease_seconds}\n'
                f"        settled = await transaction.rows(one, every)\n{TAIL}",
            ),
            Swap(SETTLE, ""),
        ),
        f"{ADMISSION_TESTS}::test_a_request_that_comes_while_the_commit_waits_for_a_settlement_is_found",
        "a payment to a request that came while the block was being stored is never seen",
    ),
    "commit that joins before it has the cursor": Mutant(
        LEDGER,
        (
            Swap(ADVANCE + INSERT, INSERT),
            Swap(SETTLE, ""),
            Swap(TAIL, f"{SETTLE}{ADVANCE}{TAIL}"),
        ),
        f"{ADMISSION_TESTS}::test_a_request_that_comes_before_the_commit_has_the_cursor_is_found_by_it",
        "a payment to a request that came between the two is never seen",
    ),
    "repeatable read": Mutant(
        DATABASE,
        (Swap("BEGIN ISOLATION LEVEL READ COMMITTED", "BEGIN ISOLATION LEVEL REPEATABLE READ"),),
        f"{ADMISSION_TESTS}::test_an_admission_that_meets_a_commit_under_way_waits_and_finds_its_credits",
        "whoever had to wait for a lock is sent away, or decides by what was there before it waited",
        fails_with="StoreUnavailable: could not serialize access due to concurrent update",
    ),
    "join by status": Mutant(
        MATCHING,
        (Swap(BELONGS, f"AND r.status IN ('pending', 'detected', 'reorged') {BELONGS}"),),
        f"{LEDGER_TESTS}::test_a_payment_touches_its_request_whatever_the_status[expired]",
        "money that comes late is never told to anybody",
    ),
    "join by admitted height": Mutant(
        MATCHING,
        (Swap(BELONGS, f"AND r.reconcile_admitted_height IS NOT NULL {BELONGS}"),),
        f"{LEDGER_TESTS}::test_a_payment_is_settled_whether_admitted_or_not[None]",
        "a payment that comes before the first look at its request falls between commit and admission",
    ),
    "admission of a past that was not read": Mutant(
        ADMISSION,
        (Swap("(tail.tail_start = 0 OR tail.start_time < r.created_at - interval '15 minutes')", "true"),),
        f"{ADMISSION_TESTS}::test_a_request_is_admitted_when_the_tail_begins_before_its_first_block[14]",
        "a request expires although nobody has read the blocks in which it was paid",
    ),
    "commit without the touch after it": Mutant(
        LEDGER,
        (Swap("replace(done, touched=done.touched + await touch_due(database, cursor.network, due_against))", "done"),),
        "tests/store/test_due_height.py::test_a_height_that_is_reached_while_the_persist_commits_is_not_missed",
        "a payment that became deep enough in that very moment is confirmed a minute or more too late",
    ),
    "rollback without its touch": Mutant(
        LEDGER,
        (Swap("touched = await transaction.rows(_TOUCH_ORPHANED, parameters)", "touched = []"),),
        f"{FENCE_TESTS}::test_a_row_that_a_rollback_touched_is_not_written_but_decided_again",
        "a request is confirmed by money that the chain has just taken back",
    ),
}  # fmt: skip

FENCED = {
    "COMMIT before the fence is read": Mutant(
        LEDGER,
        (
            Swap(
                ADVANCE + INSERT,
                ADVANCE.replace("if not", "is_ours =").replace(":\n            raise _FencedError", "") + INSERT,
            ),
            Swap(
                AFTER,
                "        if not is_ours:\n"
                '            await transaction.send("COMMIT")\n'
                f"            raise _FencedError\n{AFTER}",
            ),
        ),
        f"{LEDGER_FENCE_TESTS}::test_a_scanner_that_lost_the_lease_commits_nothing",
        "a scanner that was thought dead stores its blocks and settlements beside its successor's",
    ),
    "cursor without its height": Mutant(
        CURSOR,
        (Swap("AND k.next_height = %(next_height)s ", ""),),
        f"{CURSOR_FENCE_TEST}[next_height = next_height + 1]",
        "a block is stored twice, or one is left out and its payments are never seen",
    ),
    "cursor without its tip": Mutant(
        CURSOR,
        (Swap("AND k.tip_hash = %(tip_hash)s\n", "\n"),),
        f"{CURSOR_FENCE_TEST}[tip_hash = '0xother']",
        "a block is stored that does not hang on the one below it",
    ),
    "cursor without its owner": Mutant(
        CURSOR,
        (Swap("\n  AND k.scan_lease_owner = %(owner)s ", "\n  "),),
        f"{CURSOR_FENCE_TEST}[scan_lease_owner = 'host-1#00000000000000bb']",
        "after a fail-over that lost a grant, two scanners with one epoch both store blocks",
    ),
    "cursor without its epoch": Mutant(
        CURSOR,
        (Swap('AND k.scan_lease_epoch = %(epoch)s """', '"""'),),
        f"{CURSOR_FENCE_TEST}[scan_lease_epoch = scan_lease_epoch + 1]",
        "a scanner that lost its lease and took it again stores what it had read before",
    ),
    "commit on a stopped network": Mutant(
        LEDGER,
        (Swap('"AND k.stop_reason IS NULL RETURNING 1"', '"RETURNING 1"'),),
        f"{CURSOR_FENCE_TEST}[stop_reason = 'stopped']",
        "a network goes on although a reorg below what is final stopped it",
    ),
    "rollback below what is final": Mutant(
        LEDGER,
        (Swap(" AND %(fork)s >= coalesce(k.finalized_height, -1)", ""),),
        "tests/store/test_rollback.py::test_a_fork_below_what_is_final_is_refused",
        "an endpoint that lies takes back what is final",
    ),
    "scan lease without its end": Mutant(
        CURSOR,
        (
            Swap(
                "AND (k.scan_lease_until IS NULL OR k.scan_lease_until <= now() OR k.scan_lease_owner = %(owner)s)",
                "",
            ),
        ),
        "tests/store/test_scan_lease.py::test_one_scanner_holds_the_cursor_until_its_lease_ends",
        "scanners take the cursor from each other all the time, and nobody gets on",
    ),
    "scan lease without a new epoch": Mutant(
        CURSOR,
        (Swap("scan_lease_epoch = k.scan_lease_epoch + 1\nWHERE", "scan_lease_epoch = k.scan_lease_epoch\nWHERE"),),
        "tests/store/test_scan_lease.py::test_one_scanner_holds_the_cursor_until_its_lease_ends",
        "a scanner's earlier lease passes the fence",
    ),
    "admission without the epoch": Mutant(
        ADMISSION,
        (Swap("= m.epoch", ANY_EPOCH),),
        f"{ADMISSION_TESTS}::test_only_rows_that_are_still_leased_are_admitted[reconcile_lease_epoch = 9]",
        "a worker that lost a row closes its past while another still reads it",
    ),
    "admission without the owner": Mutant(
        ADMISSION,
        (Swap("= m.epoch", ANY_OWNER.format(of="m.epoch")),),
        f"{ADMISSION_TESTS}::test_only_rows_that_are_still_leased_are_admitted[reconcile_lease_owner = 'x']",
        "a worker that lost a row closes its past while another still reads it",
    ),
    "settling without the epoch": Mutant(
        MATCHING,
        (Swap("= mine.epoch", ANY_EPOCH),),
        f"{ADMISSION_TESTS}::test_only_rows_that_are_still_leased_are_admitted[reconcile_lease_epoch = 9]",
        "a worker writes settlements of a row that another is deciding, and no touch tells it",
    ),
    "settling without the owner": Mutant(
        MATCHING,
        (Swap("= mine.epoch", ANY_OWNER.format(of="mine.epoch")),),
        f"{ADMISSION_TESTS}::test_only_rows_that_are_still_leased_are_admitted[reconcile_lease_owner = 'x']",
        "a worker writes settlements of a row that another is deciding, and no touch tells it",
    ),
    "refused work that stays open": Mutant(
        DATABASE,
        (Swap("the transaction must not stay open behind us.\n            await self._roll_back(connection)", ""),),
        "tests/store/test_database.py::test_work_that_raises_leaves_nothing_behind",
        "what a fenced worker had already sent is committed together with its next work",
    ),
    "transaction without an idle time-out": Mutant(
        DATABASE,
        (Swap("SET LOCAL idle_in_transaction_session_timeout = {wait_ms}\n", ""),),
        "tests/store/test_bounds.py::test_a_frozen_process_does_not_keep_its_locks",
        "one frozen process holds up a whole network until somebody kills it",
        fails_with="StoreUnavailable: others were in the way for too long",
    ),
    "write without trust in the lease": Mutant(
        RECONCILER,
        (Swap("if time.monotonic() > held.trusted_until:", "if False:"),),
        f"{TRUST_TESTS}::test_a_step_that_was_slower_than_the_lease_writes_nothing",
        "a worker that was slower than its lease sends a write in the last moment, and the fence alone is left",
    ),
    "work without trust in the grant": Mutant(
        RECONCILER,
        (Swap("if time.monotonic() > batch.trusted_until:", "if False:"),),
        f"{TRUST_TESTS}::test_a_grant_that_was_slower_than_the_lease_is_not_worked_on",
        "a worker whose grant was long on its way admits requests that another may hold by then",
    ),
    "renewal without trust in the lease": Mutant(
        RECONCILER,
        (Swap(" < time.monotonic() < batch.trusted_until:", " < time.monotonic():"),),
        f"{TRUST_TESTS}::test_a_step_that_was_slower_than_the_lease_writes_nothing",
        "a worker that does not know whether it still has its rows prolongs them and writes what is long stale",
    ),
    "expiry without a last look": Mutant(
        RECONCILER,
        (Swap("if any(_expires(claim, outcomes) for claim in batch.claims):", "if False:"),),
        f"{EXPIRY_TESTS}::test_a_payment_that_became_its_own_after_the_block_was_read_is_found_before_it_expires[token]",
        "a request expires for good although the tail holds money that a correction by hand made its own",
    ),
}

ORDERED = {
    "commit that locks requests before the cursor": Mutant(
        LEDGER,
        (
            Swap(ADVANCE + INSERT, INSERT),
            Swap(TOUCH, ""),
            Swap(TAIL, f"{TOUCH}{ADVANCE}{TAIL}"),
        ),
        f"{LEDGER_FENCE_TESTS}::test_admission_and_commit_do_not_deadlock[commit]",
        "scanner and workers wait for each other in a circle until PostgreSQL breaks it, a second each time",
    ),
    "admission that locks requests before the cursor": Mutant(
        ADMISSION,
        (Swap(LOCK + JOIN + ADMIT, ADMIT + LOCK + JOIN),),
        f"{LEDGER_FENCE_TESTS}::test_admission_and_commit_do_not_deadlock[admission]",
        "scanner and workers wait for each other in a circle until PostgreSQL breaks it, a second each time",
    ),
    "touch without the order of ids": Mutant(
        LEDGER,
        (Swap(f"{PAID}  ORDER BY r.id FOR NO KEY UPDATE OF r", f"{PAID}  FOR NO KEY UPDATE OF r"),),
        f"{LEDGER_FENCE_TESTS}::test_touch_and_persist_do_not_deadlock[commit]",
        "scanner and workers wait for each other in a circle until PostgreSQL breaks it, a second each time",
    ),
    "rollback without the order of ids": Mutant(
        LEDGER,
        (Swap(f"{ORPHANED}  ORDER BY r.id FOR NO KEY UPDATE OF r)", f"{ORPHANED}  FOR NO KEY UPDATE OF r)"),),
        "tests/store/test_rollback.py::test_rollback_and_persist_do_not_deadlock[rollback]",
        "scanner and workers wait for each other in a circle until PostgreSQL breaks it, a second each time",
    ),
}  # fmt: skip

WHOSE_MONEY = {
    "credits of any chain id": Mutant(
        MATCHING,
        (Swap("    AND r.chain_id = \"\"\"\n    + _CHAIN_ID\n    + \"\"\"\n", "\n"),),
        f"{CREDIT_TEST}[columns7-credit7-False]",
        "money on a test chain pays a request of another",
    ),
    "credits of any token": Mutant(
        MATCHING,
        (Swap("    AND lower(coalesce(r.token_contract, '')) = c.token_contract\n", ""),),
        f"{CREDIT_TEST}[columns5-credit5-False]",
        "a worthless token pays a request in dollars",
    ),
    "wei for a token request": Mutant(
        MATCHING,
        (Swap("    AND (r.token_contract IS NULL) = (r.token_standard IS NULL)\n", ""),),
        f"{CREDIT_TEST}[columns11-credit11-False]",
        "five million wei pay a request of five dollars",
    ),
    "credits older than their request": Mutant(
        MATCHING,
        (Swap("    AND c.block_time >= r.created_at - interval '15 minutes'\n", ""),),
        f"{LEDGER_TESTS}::test_a_block_much_older_than_the_request_matches_nothing[15.1-False]",
        "what the former customer of an address paid confirms the next one's request",
    ),
    "credits of two requests": Mutant(
        MATCHING,
        (Swap("      AND twin.id <> r.id\n", "      AND false\n"),),
        f"{LEDGER_TESTS}::test_addresses_that_differ_only_in_case_settle_neither",
        "one payment confirms two requests",
    ),
    "a tag of any chain": Mutant(
        CURSOR,
        (
            Swap(
                "b.height = %(finalized)s::bigint AND b.block_hash = %(finalized_hash)s::text",
                "b.height = %(finalized)s::bigint AND %(finalized_hash)s::text IS NOT NULL",
            ),
        ),
        "tests/store/test_cursor.py::test_a_tag_counts_only_where_its_hash_is_ours",
        "what another chain finalized is taken as final here: payments are confirmed, and no reorg can take them back",
    ),
    "a payment mined again counts from then": Mutant(
        MATCHING,
        (Swap("o.payment_request_id = r.id AND split_part(o.evidence_ref, ':', 1) = c.tx_hash", "false"),),
        "tests/store/test_rollback.py::"
        "test_a_payment_mined_again_elsewhere_keeps_the_time_at_which_it_was_first_seen",
        "a payment in time becomes late by a reorg, and its request expires",
    ),
    "a payment mined again keeps its old proof": Mutant(
        MATCHING,
        (
            Swap(
                "s.metadata - 'reorg' || excluded.metadata ELSE",
                "s.metadata || excluded.metadata ELSE",
            ),
        ),
        "tests/store/test_rollback.py::test_a_payment_mined_again_as_it_was_loses_its_proof",
        "money that is on the chain again counts as taken back",
    ),
    "any reorg proof will do": Mutant(
        VIEW,
        (Swap(' or proof["block_hash"] != row.block_hash', ""),),
        "tests/store/test_view.py::test_a_flag_without_a_proof_of_this_block_is_disowned_not_orphaned[an old block's]",
        "an old proof, which names another block, takes a request back (or stops its worker, which still asks)",
    ),
    "settlements of anybody": Mutant(
        VIEW,
        (Swap("o.payment_request_id = r.id AND o.metadata ? 'first_block_time'", "o.payment_request_id = r.id"),),
        "tests/store/test_view.py::test_another_programs_settlements_are_not_seen",
        "a settlement that another program wrote makes its request unreadable: nobody decides it any more",
        fails_with="KeyError",
    ),
}  # fmt: skip

OF_CHAIN = NO_GAP | FENCED | ORDERED | WHOSE_MONEY
