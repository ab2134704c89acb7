"""The guards of finality: what may be taken back, what stops a network and starts it again, and what demotes."""

from tests.guards.mutants import Mutant, Swap

ADMISSION = "reconsup.store.admission"
BLOCK = "reconsup.chain.block"
COMMAND = "reconsup.resume"
DECISION = "reconsup.payments.decision"
LEDGER = "reconsup.store.ledger"
PERSIST = "reconsup.store.persist"
REQUEST = "reconsup.payments.request"
RESUME = "reconsup.store.resume"
SCANNER = "reconsup.worker.scanner"
VIEW = "reconsup.store.view"

RESUME_TESTS = "tests/store/test_resume.py"
COMMAND_TESTS = "tests/worker/test_resume.py"
LOSS_TESTS = "tests/payments/test_decision_losses.py"
REPAIR_TESTS = "tests/store/test_repair.py"

STARTED_AGAIN = {
    "resume that leaves the lease as it is": Mutant(
        RESUME,
        (
            Swap("scan_lease_owner = NULL, scan_lease_until = NULL, scan_lease_epoch = k.scan_lease_epoch + 1, ", ""),
        ),
        f"{RESUME_TESTS}::test_a_scanner_that_believes_to_hold_the_network_is_fenced",
        "a worker goes on storing the chain that somebody has just left",
    ),
    "resume of a network that runs": Mutant(
        RESUME,
        (Swap(" AND k.stop_reason IS NOT NULL\n", "\n"),),
        f"{RESUME_TESTS}::test_a_network_that_is_not_stopped_or_moved_is_left_alone",
        "a command that was late takes a running network back",
    ),
    "resume of a network that moved": Mutant(
        RESUME,
        (Swap("  AND k.next_height = %(next_height)s AND k.tip_hash = %(tip_hash)s\n", ""),),
        f"{RESUME_TESTS}::test_a_network_that_is_not_stopped_or_moved_is_left_alone",
        "blocks that came meanwhile are forgotten, and their settlements stand for ever",
    ),
    "resume without a second look at the settlements": Mutant(
        RESUME,
        (Swap("if asked is not None and not", "if False and not"),),
        f"{RESUME_TESTS}::test_a_settlement_that_nobody_asked_about_is_not_passed_over",
        "a payment of the chain that is gone stays good, and so does the status it gave",
    ),
    "resume on one endpoint's word": Mutant(
        COMMAND,
        (Swap("        if answer != answers[0]:\n", "        if False:\n"),),
        f"{COMMAND_TESTS}::test_endpoints_that_do_not_agree_start_nothing",
        "one endpoint on a wrong fork takes back what is final",
    ),
    "resume above the fork": Mutant(
        COMMAND,
        (Swap("    if await _gone(chains, below):\n", "    if False:\n"),),
        f"{COMMAND_TESTS}::test_below_the_tail_a_height_is_asked_for_and_every_settlement_is_compared",
        "payments between the fork and the height are of a chain that is gone, and stay confirmed",
    ),
    "stopped scanner that does not look whether it was resumed": Mutant(
        SCANNER,
        (Swap("if seen is None or seen.epoch != cursor.epoch:", "if False:"),),
        f"{COMMAND_TESTS}::test_the_scanner_that_found_the_stop_goes_on_after_the_resume",
        "with one worker, a network that was resumed is read again only a lease later",
    ),
}  # fmt: skip

WALKED = {
    "walk that renews nothing": Mutant(
        SCANNER,
        (Swap("        if not await cursors.renew(", "        if False and not await cursors.renew("),),
        "tests/worker/test_walk.py::test_a_walk_that_makes_headway_keeps_the_lease_for_as_long_as_it_takes[False]",
        "a walk that takes longer than a lease is begun again and again by one worker after the other",
    ),
    "walk over headers that do not hang": Mutant(
        BLOCK,
        (Swap("    if not links(headers[max(0, walked - 1) :][::-1]):\n", "    if False:\n"),),
        "tests/chain/test_block.py::test_the_walk_back[headers of two chains]",
        "answers of two nodes together look like a reorg",
    ),
    "rollback that invents a tag": Mutant(
        LEDGER,
        (
            Swap(
                "CASE WHEN k.safe_height > %(fork)s THEN %(fork)s ELSE k.safe_height END",
                "least(k.safe_height, %(fork)s)",
            ),
        ),
        "tests/store/test_rollback.py::test_a_rollback_gives_no_tag_to_a_chain_that_has_none",
        "on a chain without a safe tag a small reorg confirms what waits for it",
    ),
    "what left the tail is finalized": Mutant(
        VIEW,
        (Swap("finalized_height=row.finalized_tag_height", "finalized_height=row.tail_floor"),
         Swap("k.expiry_time, k.safe_height, k.finalized_tag_height,",
              "k.expiry_time, k.safe_height, k.finalized_tag_height, k.tail_start - 1 AS tail_floor,")),
        "tests/worker/test_tags.py::test_a_payment_that_left_the_tail_while_finality_stalls_is_not_confirmed",
        "while the chain finalizes nothing, payments are confirmed as if it had",
    ),
}  # fmt: skip

DEMOTED = {
    "any proof demotes": Mutant(
        DECISION,
        (Swap("    if counted is None:\n        return True\n", "    return True\n"),),
        "tests/worker/test_late_over_under_twice.py::test_an_old_proof_and_a_raised_amount_take_nothing_back",
        "a request is taken back because its amount was raised",
    ),
    "a proof of what was gone before demotes": Mutant(
        DECISION,
        (Swap("(orphaned.evidence_ref, orphaned.block_hash) in counted.gone", "False"),
         Swap("counted.amounts.get(orphaned.transaction, 0)", "1")),
        f"{LOSS_TESTS}::test_an_old_proof_demotes_nothing_when_the_amount_is_raised[confirmed]",
        "a request is taken back because its amount was raised",
    ),
    "a payment that is there again demotes": Mutant(
        DECISION,
        (Swap("if each.transaction == orphaned.transaction", "if False"),),
        f"{LOSS_TESTS}::test_money_that_is_there_again_under_another_log_index_was_not_lost[confirmed]",
        "a request is taken back although its payment was mined again",
    ),
    "late money's entry is taken for the confirmation's": Mutant(
        VIEW,
        (Swap("           AND t.reason NOT IN ('payment_late', 'payment_again')\n", ""),),
        "tests/worker/test_late_over_under_twice.py::test_late_money_that_was_once_told_as_a_step_is_not_the_money_"
        "that_the_status_was_given_for[100-reasons0-True]",
        "a request that was paid once more, too late, stays confirmed when the chain takes all its money back",
    ),
    "late money that is told as a step": Mutant(
        PERSIST,
        (Swap("froms=outcome.status,", ""),),
        "tests/worker/test_late_over_under_twice.py::test_a_request_whose_payment_is_taken_back_is_reorged_also_where_"
        "more_came_too_late[request]",
        "a history says twice that a request was confirmed",
    ),
    "repair by who lost the request": Mutant(
        ADMISSION,
        (Swap('_REPAIR, parameters | {"ids": ours}', "_REPAIR, parameters"),),
        f"{REPAIR_TESTS}::test_who_lost_the_request_repairs_nothing_of_it",
        "a worker that is nobody any more writes settlements",
    ),
    "repair that locks settlements first": Mutant(
        ADMISSION,
        (
            Swap(
                "        ours = [id_ for (id_,) in await transaction.rows(_LOCK_OURS, parameters)]\n",
                '        ours = parameters["ids"]\n',
            ),
        ),
        f"{REPAIR_TESTS}::test_a_repair_locks_its_requests_before_their_settlements",
        "workers wait for each other in a circle until PostgreSQL breaks it",
    ),
    "addresses that are none": Mutant(
        REQUEST,
        (Swap("        if not EVM_ADDRESS.fullmatch(self.address):\n", "        if False:\n"),),
        "tests/worker/test_rows.py::"
        "test_a_request_that_nobody_can_pay_does_not_expire_silently[address_canonical-0x1234-address_invalid]",
        "a request that nobody can pay expires, and nobody hears why",
    ),
}  # fmt: skip

OF_FINAL = STARTED_AGAIN | WALKED | DEMOTED
