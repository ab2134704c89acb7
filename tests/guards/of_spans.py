"""The guards of spans: who joins, who may write, and who is admitted at the end."""

from tests.guards.mutants import Mutant, Swap

JOINING = "reconsup.store.joining"
PERSIST = "reconsup.store.persist"
READER = "reconsup.worker.spans"
SPANS = "reconsup.store.spans"

TESTS = "tests/store/test_spans.py"
MEETINGS = "tests/store/test_spans_meet.py"
WORKER_TESTS = "tests/worker/test_spans.py"
FENCE_TEST = f"{TESTS}::test_each_part_of_the_spans_fence_counts"
NEEDS_TEST = f"{TESTS}::test_who_needs_no_old_blocks_opens_no_span"
BY_HAND_TEST = (
    f"{TESTS}::test_a_member_whose_time_was_changed_by_hand_is_not_admitted_by_what_was_read_for_another_time"
)
WHERE_FENCE = "AND s.next_height = %(next_height)s AND s.next_hash = %(next_hash)s\n"
OWNER = "AND s.lease_owner = %(owner)s AND s.lease_epoch = %(epoch)s "
LOCKED = "stop_reason IS NULL FOR NO KEY UPDATE\n"
LOCK = "        await _lock(transaction, span)\n"
ADVANCE = """        if not await transaction.rows(_ADVANCE, _fence(span) | moved):
            raise _FencedError
"""
PAID = "        paid = await transaction.rows(_PAID, _key(span) | columns)\n"
UNSEEN = "an old payment is never seen, and its request expires"
ENDLESS = "months of blocks are read for nothing, again and again"

FENCES = {
    "span without the next height": Mutant(
        SPANS,
        (Swap(WHERE_FENCE, "AND s.next_hash = %(next_hash)s\n"),),
        f"{FENCE_TEST}[next_height = next_height - 1-step]",
        "a late reader puts the span back or on: blocks are left out, " + UNSEEN,
    ),
    "span without the next hash": Mutant(
        SPANS,
        (Swap(WHERE_FENCE, "AND s.next_height = %(next_height)s\n"),),
        f"{FENCE_TEST}[next_hash = 'x'-step]",
        "blocks of another chain are settled",
    ),
    "span without the owner": Mutant(
        SPANS,
        (Swap(OWNER, "AND s.lease_epoch = %(epoch)s "),),
        f"{FENCE_TEST}[lease_owner = NULL-step]",
        "a reader that is buried goes on writing",
    ),
    "span without the epoch": Mutant(
        SPANS,
        (Swap(OWNER, "AND s.lease_owner = %(owner)s "),),
        f"{FENCE_TEST}[lease_epoch = lease_epoch + 1-step]",
        "a reader that lost its lease and has it again writes what it read under the old one",
    ),
    "span of a stopped network": Mutant(
        SPANS,
        (Swap(LOCKED, "true FOR NO KEY UPDATE\n"),),
        f"{FENCE_TEST}[stopped-step]",
        "something is written although the network is stopped",
    ),
    "end of a span without its fence": Mutant(
        SPANS,
        (Swap("        if not fenced or (fenced[0].is_needed", "        if fenced and (fenced[0].is_needed"),),
        f"{FENCE_TEST}[next_height = next_height - 1-close]",
        "requests are admitted by what somebody else has not read: " + UNSEEN,
    ),
    "span taken from its reader": Mutant(
        SPANS,
        (Swap('"AND (s.lease_until IS NULL OR s.lease_until <= now()) RETURNING 1"', '"RETURNING 1"'),),
        f"{TESTS}::test_of_two_readers_one_reads_and_the_other_takes_over_where_it_died",
        "two readers take the span from each other at every turn, and none gets on",
    ),
    "span whose top is not compared": Mutant(
        READER,
        (Swap("            if blocks[-1].block_hash != span.next_hash:\n", "            if False:\n"),),
        f"{WORKER_TESTS}::test_blocks_that_do_not_hang_below_the_stored_chain_are_not_believed[ChainInconsistent]",
        "the worker ends at each block of another chain instead of asking another endpoint",
        fails_with="AssertionError",
    ),
}

MEMBERS = {
    "joining a span that is begun": Mutant(
        JOINING,
        (Swap("WHERE s.next_height = s.to_height\n", ""),),
        f"{TESTS}::test_once_it_is_begun_others_wait_for_the_next_one_and_are_woken_by_its_end",
        "what was read already is read again from the top, for ever while others come",
    ),
    "membership of a span that is begun": Mutant(
        JOINING,
        (Swap("tail.tail_start if is_opened else WAITING", "tail.tail_start"),),
        f"{TESTS}::test_once_it_is_begun_others_wait_for_the_next_one_and_are_woken_by_its_end",
        UNSEEN,
    ),
    "joining a span without moving its top": Mutant(
        JOINING,
        (
            Swap(
                "SET to_height = excluded.to_height, next_height = excluded.next_height, "
                "next_hash = excluded.next_hash,\n    until_time",
                "SET until_time",
            ),
        ),
        f"{TESTS}::test_until_it_is_begun_others_join_it_at_the_tail_of_their_time",
        "the blocks that left the tail meanwhile are never read: " + UNSEEN,
    ),
    "joining a span without moving its end": Mutant(
        JOINING,
        (Swap("until_time = least(s.until_time, excluded.until_time)", "until_time = s.until_time"),),
        f"{TESTS}::test_until_it_is_begun_others_join_it_at_the_tail_of_their_time",
        "the oldest requests are never admitted",
    ),
    "span without the lock on the cursor": Mutant(
        SPANS,
        (Swap(LOCKED, "stop_reason IS NULL\n"),),
        f"{MEETINGS}::test_a_reader_waits_for_whoever_changes_the_networks_cursor",
        "old blocks of a chain that is just being given up are settled",
    ),
    "span that looks for requests before it has the cursor": Mutant(
        SPANS,
        (
            Swap(
                LOCK + ADVANCE + PAID,
                PAID + LOCK + ADVANCE,
            ),
        ),
        f"{MEETINGS}::test_a_request_that_joins_before_the_reader_has_the_cursor_is_seen_by_it",
        UNSEEN,
    ),
    "giving up a span without asking once more": Mutant(
        SPANS,
        (Swap("(fenced[0].is_needed and not span.is_read)", "False"),),
        f"{TESTS}::test_a_span_that_somebody_joined_meanwhile_is_not_given_up",
        "a request waits for a span that is gone",
    ),
    "admission by a span that was not read": Mutant(
        SPANS,
        (Swap("WHEN %(is_read)s AND r.reconcile", "WHEN %(is_read)s IS NOT NULL AND r.reconcile"),),
        f"{TESTS}::test_a_member_that_is_open_when_its_span_is_given_up_is_not_admitted",
        UNSEEN,
    ),
    "admission whatever the request's time": Mutant(
        SPANS,
        (Swap("        AND (s.from_height = 0 OR r.created_at - interval '15 minutes' >= s.until_time)\n", ""),),
        f"{BY_HAND_TEST}[created_at = created_at - interval '10 minutes']",
        UNSEEN,
    ),
    "admission wherever the request joined": Mutant(
        SPANS,
        (Swap("r.reconcile_span_height BETWEEN 0 AND s.to_height + 1", "r.reconcile_span_height >= 0"),),
        f"{BY_HAND_TEST}[reconcile_span_height = 201]",
        UNSEEN,
    ),
    "a wrong row that stays a member": Mutant(
        PERSIST,
        (
            Swap(
                '        WHEN"""\n    + _IS_NOBODYS\n    + """OR l.status IN',
                "        WHEN l.status IN",
            ),
        ),
        f"{TESTS}::test_a_member_that_turns_out_to_be_wrong_is_none_any_more[ambiguous_address]",
        "what the span settled for nobody while the row was wrong is never settled: " + UNSEEN,
    ),
    "native money that is settled in both its forms": Mutant(
        "reconsup.store.matching",
        (Swap("_ALONE + _SEEN_ONCE + _ON_CONFLICT", "_ALONE + ' ORDER BY r.id, c.evidence_ref' + _ON_CONFLICT"),),
        f"{TESTS}::test_native_money_that_was_settled_before_its_logs_were_read_is_not_settled_again[logged now]",
        "half a payment confirms a request: it counts twice",
    ),
    "a confirmed row that stays a member": Mutant(
        PERSIST,
        (Swap("OR l.status IN ('confirmed', 'expired') THEN NULL", "THEN NULL"),),
        f"{TESTS}::test_a_member_that_is_confirmed_meanwhile_is_none_any_more[confirmed]",
        "a row that another service locks later is waited for at the end of every span",
    ),
    "reading on for nobody": Mutant(
        READER,
        (Swap("if span.is_read or not span.is_needed:", "if span.is_read:"),),
        f"{WORKER_TESTS}::test_an_old_request_that_was_paid_in_the_tail_has_no_old_blocks_read",
        ENDLESS,
    ),
    "span of a confirmed request": Mutant(
        JOINING,
        (Swap("        request.status in OPEN\n        and tail", "        tail"),),
        f"{NEEDS_TEST}[confirmed]",
        ENDLESS,
    ),
    "span of a wrong request": Mutant(
        JOINING,
        (Swap("        and request.error(chain_id=tail.chain_id, shares_address=False) is None\n", ""),),
        f"{NEEDS_TEST}[other chain]",
        ENDLESS,
    ),
    "span of twins": Mutant(
        JOINING,
        (Swap("    AND o.id <> r.id\n", "    AND o.id <> r.id AND false\n"),),
        f"{TESTS}::test_twins_open_no_span_until_one_of_them_is_gone",
        ENDLESS,
    ),
    "span without a limit": Mutant(
        JOINING,
        (Swap("        and not is_too_old(request, tail.tip_time)\n", ""),),
        f"{NEEDS_TEST}[too old]",
        "one row from 1970 has the whole chain read",
    ),
    "span that hangs on nothing": Mutant(
        JOINING,
        (Swap("CASE WHEN k.next_height = k.tail_start THEN k.tip_hash ELSE b.parent_hash END", "k.tip_hash"),),
        f"{TESTS}::test_nothing_is_opened_below_a_tail_that_is_not_there",
        "no block is ever believed, and the span never ends",
    ),
}

ORDERS = {
    "step of a span without the order of ids": Mutant(
        SPANS,
        (Swap("AND r.status <> 'failed'\nORDER BY r.id FOR NO KEY", "AND r.status <> 'failed'\nFOR NO KEY"),),
        "tests/store/test_no_circles.py::test_no_two_acts_wait_for_each_other[step-persist]",
        "readers and workers wait for each other in a circle until PostgreSQL breaks it, a second each time",
    ),
    "end of a span without the order of ids": Mutant(
        SPANS,
        (Swap("ORDER BY r.id LIMIT %(limit)s", "LIMIT %(limit)s"),),
        "tests/store/test_no_circles.py::test_no_two_acts_wait_for_each_other[close-persist]",
        "readers and workers wait for each other in a circle until PostgreSQL breaks it, a second each time",
    ),
}

REFUSALS = {
    "span that takes no refusal": Mutant(
        SPANS,
        (Swap("            return await database.transact(partial(work, is_careful=True))\n", "            raise\n"),),
        f"{WORKER_TESTS}::test_a_frozen_row_that_was_paid_long_ago_does_not_hold_back_the_others",
        "one wei to an archived request keeps all old requests of the network from being decided",
    ),
}

OF_SPANS = FENCES | MEMBERS | ORDERS | REFUSALS

# In `make test`: those on which it hangs that no payment is missed. The others are as `make test-all` finds them.
ALWAYS = {
    "span without the next height",
    "span without the next hash",
    "span without the epoch",
    "end of a span without its fence",
    "membership of a span that is begun",
    "joining a span without moving its top",
    "span that looks for requests before it has the cursor",
    "admission by a span that was not read",
    "admission whatever the request's time",
}
