"""The guards of leases: the claim, what is written under a lease, and how a lease is given back."""

from tests.guards.mutants import Mutant, Swap

LEASES = "reconsup.store.leases"
PERSIST = "reconsup.store.persist"

CLAIM_TESTS = "tests/store/test_leases.py"
FENCE_TESTS = "tests/store/test_persist_fence.py"
BACK_TESTS = "tests/store/test_giving_back.py"
LIMIT_TEST = f"{CLAIM_TESTS}::test_rows_that_cannot_be_claimed_do_not_use_up_the_limit"

# How the history of leases (tests/support/lease_history.sql) says it, as the program passes it on.
OVERLAP = 'StoreRejected: conflicting key value violates exclusion constraint "never_two_at_the_same_request"'
HISTORY = "StoreRejected: lease history"

# `HELD_EPOCH = x.epoch` says owner and epoch in one; put behind it, these take one of the two out, or let nobody in.
ANY_EPOCH = "IS NOT NULL"
ANY_OWNER = "= {of} IS NOT FALSE AND r.reconcile_lease_epoch = {of}"
OR_NOBODY = "= {of} IS NOT FALSE AND coalesce(r.reconcile_lease_owner, %(owner)s) = %(owner)s"

LEASE_ENDED = "    AND (reconcile_lease_until IS NULL OR reconcile_lease_until <= now())\n"
LEASE_ENDED_OUTSIDE = " AND (r.reconcile_lease_until IS NULL OR r.reconcile_lease_until <= now())"
STATUSES = "    AND status IN ('pending', 'detected', 'confirmed', 'reorged', 'expired')\n"
OUTSIDE = "WHERE r.id = ANY (ARRAY(SELECT id FROM candidates))"
CLAIM_STATEMENT = "_CLAIM: LiteralString = CANDIDATES + ORDINARY + LIMITED + GRANT + _RETURN"

CLAIM = {
    "claim without SKIP LOCKED": Mutant(
        LEASES,
        (Swap(" SKIP LOCKED)", ")"),),
        f"{CLAIM_TESTS}::test_two_claimers_get_disjoint_rows_and_neither_waits",
        "every worker waits for the slowest one: many workers are as fast as one",
    ),
    "claim without any lock": Mutant(
        LEASES,
        (Swap("  FOR NO KEY UPDATE SKIP LOCKED)", ")"),),
        f"{CLAIM_TESTS}::test_a_claim_that_meets_another_never_takes_its_rows",
        "two workers get the same row, one after the other, and both believe in it",
        fails_with=OVERLAP,
    ),
    "claim with FOR UPDATE": Mutant(
        LEASES,
        (Swap("FOR NO KEY UPDATE SKIP LOCKED", "FOR UPDATE SKIP LOCKED"),),
        f"{CLAIM_TESTS}::test_an_open_child_insert_does_not_hide_its_request",
        "a request whose payment somebody is just writing is passed over",
    ),
    "claim without the expiry predicate": Mutant(
        LEASES,
        (Swap(LEASE_ENDED, ""),),
        f"{CLAIM_TESTS}::test_a_row_that_is_not_ours_to_claim_is_left_alone[reconcile_lease_owner]",
        "a touched row is taken from the worker that holds it: two work on it at the same time",
        fails_with=OVERLAP,
    ),
    "claim without a new epoch": Mutant(
        LEASES,
        (Swap("    reconcile_lease_epoch = r.reconcile_lease_epoch + 1,\n", ""),),
        f"{CLAIM_TESTS}::test_a_lease_that_ended_is_granted_again_with_the_next_epoch",
        "a worker's earlier claim of the same row passes every fence",
        fails_with=f"{HISTORY}: the owner of",
    ),
    "lease condition after the limit": Mutant(
        LEASES,
        (Swap(LEASE_ENDED, ""), Swap(OUTSIDE, OUTSIDE + LEASE_ENDED_OUTSIDE)),
        f"{LIMIT_TEST}[reconcile_lease_owner]",
        "rows that are held come first and use up the limit: the others are never looked at",
    ),
    "status condition after the limit": Mutant(
        LEASES,
        (Swap(STATUSES, ""), Swap(OUTSIDE, f"{OUTSIDE} {STATUSES.strip().replace('status', 'r.status')}")),
        f"{LIMIT_TEST}[status]",
        "failed rows come first and use up the limit: the others are never looked at",
    ),
    "network condition after the limit": Mutant(
        LEASES,
        (
            Swap(
                "  WHERE chain = %(chain)s AND network = %(network)s\n    AND next_reconcile_at IS NOT NULL AND",
                "  WHERE",
            ),
            Swap(OUTSIDE, f"{OUTSIDE} AND r.chain = %(chain)s AND r.network = %(network)s"),
        ),
        f"{LIMIT_TEST}[network]",
        "rows of networks that nobody serves come first and use up the limit: the others are never looked at",
    ),
    "suspect condition after the limit": Mutant(
        LEASES,
        (Swap('"reconcile_crashes = 0"', '"true"'), Swap(OUTSIDE, f"{OUTSIDE} AND r.reconcile_crashes = 0")),
        f"{LIMIT_TEST}[reconcile_crashes]",
        "rows at which workers died come first and use up the limit: the others are never looked at",
    ),
    "claim without the suspect condition": Mutant(
        LEASES,
        (Swap('"reconcile_crashes = 0"', '"true"'),),
        f"{CLAIM_TESTS}::test_a_row_that_is_not_ours_to_claim_is_left_alone[reconcile_crashes]",
        "a row that kills workers takes a whole batch down with it, again and again",
    ),
    "LIMIT in an IN-subquery": Mutant(
        LEASES,
        (
            Swap(
                CLAIM_STATEMENT,
                '_IN = CANDIDATES.replace("WITH candidates AS MATERIALIZED (", "WHERE r.id IN (")\n'
                '_CLAIM = GRANT + _IN + ORDINARY + LIMITED + "RETURNING " + _COLUMNS',
            ),
        ),
        f"{CLAIM_TESTS}::test_a_claim_leases_no_more_rows_than_its_limit_whatever_the_plan[the limited query inside]",
        "with stale statistics one worker leases far more rows than its batch, and is too slow for all of them",
    ),
    "claim on a stopped network": Mutant(
        LEASES,
        (Swap("AND k.stop_reason IS NULL ", ""),),
        f"{CLAIM_TESTS}::test_a_stopped_cursor_grants_nothing_until_it_starts_again",
        "after a reorg below what is final, requests are still decided by a chain that is not the chain",
    ),
    "claim without a cursor": Mutant(
        LEASES,
        (Swap("k.tip_time IS NOT NULL)", "k.tip_time IS NOT NULL) IS NOT NULL"),),
        f"{CLAIM_TESTS}::test_no_cursor_grants_nothing",
        "requests of a network of which nothing was read are looked at for nothing, all the time",
    ),
}  # fmt: skip

PERSISTED = {
    "persist without the epoch": Mutant(
        PERSIST,
        (Swap("= l.epoch", ANY_EPOCH),),
        f"{FENCE_TESTS}::test_owner_and_epoch_count_each[reconcile_lease_epoch = reconcile_lease_epoch + 1]",
        "a worker that lost a row and got it again writes what it decided before",
    ),
    "persist without the owner": Mutant(
        PERSIST,
        (Swap("= l.epoch", ANY_OWNER.format(of="l.epoch")),),
        f"{FENCE_TESTS}::test_owner_and_epoch_count_each[reconcile_lease_owner = 'host-1#00000000000000bb']",
        "after a fail-over that lost a grant, two workers with one epoch both write",
    ),
    "persist by one whose lease nobody holds": Mutant(
        PERSIST,
        (Swap("= l.epoch", OR_NOBODY.format(of="l.epoch")),),
        f"{FENCE_TESTS}::test_a_zombie_writes_nothing_when_its_successor_has_released",
        "a worker that was frozen writes over what its successor decided and released",
    ),
    "persist without the status": Mutant(
        PERSIST,
        (Swap("    AND r.status = l.expected_status\n", ""),),
        f"{FENCE_TESTS}::test_a_status_that_was_moved_by_hand_stays_and_the_row_is_due",
        "a refund by hand is undone by the decision that was on its way",
    ),
    "persist of a row that was touched": Mutant(
        PERSIST,
        (Swap("    AND r.next_reconcile_at = l.due_at\n", ""),),
        f"{FENCE_TESTS}::test_a_row_that_a_commit_touched_is_not_written_but_decided_again",
        "a request expires although its payment was stored before, or stays confirmed after a reorg",
    ),
    "persist of a request whose end was changed": Mutant(
        PERSIST,
        (Swap("= l.ends_at\n", "IS NOT NULL\n"),),
        f"{FENCE_TESTS}::test_a_request_that_was_changed_while_it_was_decided_is_decided_again"
        "[expires_at = expires_at + interval '1 day']",
        "a request expires although its customer was just given another day",
    ),
    "persist of a request whose amount was changed": Mutant(
        PERSIST,
        (Swap("IS NOT DISTINCT FROM l.owed", "IS NOT DISTINCT FROM r.expected_amount_minor"),),
        f"{FENCE_TESTS}::test_a_request_that_was_changed_while_it_was_decided_is_decided_again"
        "[expected_amount_minor = 5]",
        "a request is confirmed by less than what it was just raised to",
    ),
    "touch of a leased row by the earlier time": Mutant(
        LEASES,
        (Swap("ELSE now() END", "ELSE LEAST(r.next_reconcile_at, now()) END"),),
        f"{FENCE_TESTS}::test_a_touch_is_seen_also_when_the_lease_had_ended",
        "a worker that is late writes what it decided before the payment came",
    ),
    "persist without its touch of reached heights": Mutant(
        PERSIST,
        (Swap("if any(look.height is not None for look in looks.values()):", "if False:"),),
        "tests/store/test_due_height.py::test_a_due_height_that_was_reached_meanwhile_makes_the_row_due_at_once",
        "a payment that is deep enough is confirmed a minute or more too late",
    ),
    "persist without the order of ids": Mutant(
        PERSIST,
        (Swap("  ORDER BY r.id FOR NO KEY UPDATE OF r\n)", "  FOR NO KEY UPDATE OF r\n)"),),
        f"{FENCE_TESTS}::test_two_persists_of_the_same_rows_in_opposite_order_do_not_deadlock",
        "workers wait for each other in a circle until PostgreSQL breaks it, a second each time",
    ),
}

GIVEN_BACK = {
    "epoch reset at release": Mutant(
        LEASES,
        (
            Swap(
                "SET reconcile_lease_owner = NULL, reconcile_lease_until = NULL,\n"
                "    next_reconcile_at = LEAST(r.next_reconcile_at, now())",
                "SET reconcile_lease_owner = NULL, reconcile_lease_until = NULL, reconcile_lease_epoch = 0,\n"
                "    next_reconcile_at = LEAST(r.next_reconcile_at, now())",
            ),
        ),
        f"{CLAIM_TESTS}::test_no_way_of_giving_back_resets_the_epoch",
        "epochs come again, and with them the right to write of whoever was frozen",
        fails_with=f"{HISTORY}: the epoch of",
    ),
    "epoch reset at persist": Mutant(
        PERSIST,
        (Swap("\n      reconcile_lease_until = NULL,", "\n reconcile_lease_until = NULL, reconcile_lease_epoch = 0,"),),
        f"{CLAIM_TESTS}::test_no_way_of_giving_back_resets_the_epoch",
        "epochs come again, and with them the right to write of whoever was frozen",
        fails_with=f"{HISTORY}: the epoch of",
    ),
    "epoch reset at burial": Mutant(
        LEASES,
        (
            Swap(
                "reconcile_lease_until = NULL, reconcile_crashes",
                "reconcile_lease_until = NULL, reconcile_lease_epoch = 0, reconcile_crashes",
            ),
        ),
        f"{CLAIM_TESTS}::test_no_way_of_giving_back_resets_the_epoch",
        "epochs come again, and with them the right to write of whoever was frozen",
        fails_with=f"{HISTORY}: the epoch of",
    ),
    "epoch reset at hand-back": Mutant(
        PERSIST,
        (
            Swap(
                "SET reconcile_lease_owner = NULL, reconcile_lease_until = NULL,",
                "SET reconcile_lease_owner = NULL, reconcile_lease_until = NULL, reconcile_lease_epoch = 0,",
            ),
        ),
        "tests/store/test_hand_back.py::test_a_row_without_an_outcome_is_handed_back_due",
        "epochs come again, and with them the right to write of whoever was frozen",
        fails_with=f"{HISTORY}: the epoch of",
    ),
    "hand-back without the epoch": Mutant(
        PERSIST,
        (Swap("= m.epoch", ANY_EPOCH),),
        "tests/store/test_hand_back.py::test_hand_back_leaves_the_leases_of_others",
        "a slow worker gives back what it claimed anew, and two work on it",
    ),
    "hand-back without the owner": Mutant(
        PERSIST,
        (Swap("= m.epoch", ANY_OWNER.format(of="m.epoch")),),
        "tests/store/test_hand_back.py::test_hand_back_leaves_the_leases_of_others",
        "a slow worker gives back what another holds, and two work on it",
    ),
    "renewal without the epoch": Mutant(
        LEASES,
        (Swap("= mine.epoch", ANY_EPOCH),),
        f"{BACK_TESTS}::test_renewal_drops_what_was_lost",
        "a worker believes in a lease that it lost and got again, and decides by what it saw before",
    ),
    "renewal without the owner": Mutant(
        LEASES,
        (Swap("= mine.epoch", ANY_OWNER.format(of="mine.epoch")),),
        f"{BACK_TESTS}::test_renewal_drops_what_was_lost",
        "a worker prolongs another's lease and believes that it is its own",
    ),
    "renewal that writes the due time": Mutant(
        LEASES,
        (
            Swap(
                "SET reconcile_lease_until = now() + make_interval(secs => %(lease)s)\nWHERE",
                "SET reconcile_lease_until = now() + make_interval(secs => %(lease)s),\n"
                "    next_reconcile_at = now() + make_interval(secs => %(lease)s)\nWHERE",
            ),
        ),
        f"{BACK_TESTS}::test_renewal_extends_the_lease_and_nothing_else",
        "long work is never written: its due time is not what the claim wrote",
    ),
    "release of everybody's": Mutant(
        LEASES,
        (Swap("SELECT id FROM app.payment_requests WHERE reconcile_lease_owner = %(owner)s\n",
              "SELECT id FROM app.payment_requests WHERE reconcile_lease_owner IS NOT NULL\n"),),
        f"{BACK_TESTS}::test_release_gives_back_everything_of_its_owner_and_nothing_else",
        "each worker that stops takes the leases of all others, and two work on each row",
    ),
    "burial before the ghost's end": Mutant(
        LEASES,
        (Swap("        await end_ghosts(database, incarnation)\n", "        pass\n"),),
        f"{BACK_TESTS}::test_the_dead_workers_connections_are_ended_before_its_leases_are_given_back",
        "what a killed worker sent last commits after its row was given to another",
    ),
}  # fmt: skip

OF_LEASES = CLAIM | PERSISTED | GIVEN_BACK
