"""The guards between a network's endpoints: whom to believe, whom to ask, and what holds a write back."""

from tests.guards.mutants import Mutant, Swap

NODE = "reconsup.chain.node"
NODES = "reconsup.chain.nodes"
RATE = "reconsup.chain.rate"
RPC = "reconsup.chain.rpc"
SCANNER = "reconsup.worker.scanner"

NODES_TESTS = "tests/chain/test_nodes.py"
WITNESS_TESTS = "tests/chain/test_witnesses.py"
RATE_TESTS = "tests/chain/test_rate.py"
SCAN_TESTS = "tests/worker/test_two_endpoints.py"

NOT_RAISED = "Failed: DID NOT RAISE"

WHOM_TO_BELIEVE = {
    "a tag on the word of one": Mutant(
        SCANNER,
        (Swap("*await self._nodes.agree_on_tags(self._chain, head))", "head.safe, head.finalized)"),),
        f"{SCAN_TESTS}::test_what_one_endpoint_calls_final_confirms_nothing_where_a_quorum_is_asked_for",
        "one endpoint confirms what a reorg may still take, and then stops the network",
    ),
    "blocks that no other endpoint is asked about": Mutant(
        SCANNER,
        (
            Swap(
                "await self._nodes.agree_on_blocks(\n            self._chain, headers, "
                "lambda: cursors.stored_hashes(self._database, cursor)\n        )",
                "headers[-1].height",
            ),
        ),
        f"{SCAN_TESTS}::test_while_two_endpoints_show_different_forks_nothing_is_written[b comes over]",
        "a request is confirmed by a payment that only one of two forks holds",
    ),
    "a rollback that no other endpoint is asked about": Mutant(
        SCANNER,
        (Swap("        await self._nodes.agree_on_fork(self._chain, *fork.orphaned[0])\n", ""),),
        f"{SCAN_TESTS}::test_a_reorg_that_another_endpoint_does_not_show_takes_nothing_back_until_it_does",
        "one lying endpoint takes back what is confirmed",
    ),
    "a stop that no other endpoint is asked about": Mutant(
        SCANNER,
        (
            Swap(
                '            await self._nodes.agree_on_fork(self._chain, lowest, stored[lowest], "another one")\n', ""
            ),
        ),
        f"{SCAN_TESTS}::test_a_network_is_not_stopped_by_one_endpoint_while_another_one_shows_what_is_final",
        "one lying endpoint stops a network",
    ),
    "a birth that no other endpoint is asked about": Mutant(
        SCANNER,
        (Swap("            await self._nodes.agree_on_blocks(self._chain, [parent], _nothing_stored)\n", ""),),
        f"{SCAN_TESTS}::test_no_cursor_is_born_on_a_block_that_another_endpoint_does_not_have",
        "a network begins on a fork that it can never leave again",
    ),
    "witnesses whose hashes are not compared": Mutant(
        NODES,
        (Swap("if ours not in (None, other.block_hash):", "if ours is False:"),),
        f"{WITNESS_TESTS}::test_another_block_at_the_same_height_holds_everything_back_and_is_told_once",
        "two forks are written as they come",
        fails_with=NOT_RAISED,
    ),
    "witnesses whose own head is not compared": Mutant(
        NODES,
        (Swap("other = there or latest\n", "other = there or top\n"),),
        f"{WITNESS_TESTS}::test_a_lower_head_on_another_fork_contradicts_too[2]",
        "the shorter of two forks has no say",
        fails_with=NOT_RAISED,
    ),
    "a rollback that leaves out who is set aside": Mutant(
        NODES,
        (Swap("if also_set_aside or len", "if len"),),
        f"{WITNESS_TESTS}::test_an_endpoint_that_still_gives_the_stored_block_holds_a_rollback_back",
        "a moment's failure of the honest endpoint, and the other one takes back what it likes",
        fails_with=NOT_RAISED,
    ),
    "a stuck endpoint that keeps its say": Mutant(
        NODE,
        (Swap("return top - self.top_when_moved >= STUCK_BLOCKS and", "return False and"),),
        f"{WITNESS_TESTS}::test_a_head_that_stands_still_while_anothers_grows_by_32_blocks_has_no_say_until_it_grows",
        "a node that died on an orphaned block holds the network back for ever",
        fails_with="EndpointsDisagree",
    ),
    "a jump that counts as growth": Mutant(
        NODE,
        (Swap(" and now - self.moved_at >= STUCK_SECONDS", ""),),
        f"{WITNESS_TESTS}::test_a_head_that_jumps_silences_nobody",
        "a lying endpoint names a high head, and the honest ones lose their say",
        fails_with=NOT_RAISED,
    ),
    "a quorum that is not counted": Mutant(
        NODES,
        (Swap("if agreeing < self._quorum:", "if agreeing < 1:"), Swap("[self._quorum - 1]", "[0]")),
        f"{WITNESS_TESTS}::test_a_quorum_waits_until_so_many_show_the_same",
        "blocks are stored that fewer endpoints show than the operator asked for",
        fails_with=NOT_RAISED,
    ),
    "a quorum that only the highest block can have": Mutant(
        NODES,
        (Swap("if other.height >= first.height else []", "if other.height == top.height else []"),),
        f"{WITNESS_TESTS}::test_a_quorum_stores_what_it_shows_while_one_of_it_is_always_behind",
        "on a fast chain nothing is ever stored",
        fails_with="QuorumMissing",
    ),
    "a second reading that compares hashes only": Mutant(
        NODES,
        (
            Swap(
                "replace(again[block.height], proven=False) != block:",
                "again[block.height].block_hash != block.block_hash:",
            ),
        ),
        f"{WITNESS_TESTS}::test_a_block_with_other_credits_at_another_endpoint_is_not_written",
        "a block from which a payment was removed counts as proven",
        fails_with=NOT_RAISED,
    ),
    "an endpoint of another chain": Mutant(
        NODES,
        (Swap("if self.pinned is not None and node.shown not in (None, self.pinned):", "if node.shown is False:"),),
        f"{NODES_TESTS}::test_one_of_another_chain_is_set_aside_and_the_others_go_on",
        "another chain's blocks are read",
        fails_with=NOT_RAISED,
    ),
    "an endpoint that is asked who it is but once": Mutant(
        NODES,
        (Swap("node.is_met = node.is_met and isinstance(error, CallRefused)", "node.is_met = node.is_met"),),
        f"{NODES_TESTS}::test_each_endpoint_is_asked_who_it_is_before_its_first_use_and_after_each_failure",
        "after an outage another chain answers at the same URL, and is believed",
    ),
    "a chain that is pinned on one word": Mutant(
        NODES,
        (Swap("if len(shown) > 1:", "if len(shown) > 9:"),),
        f"{NODES_TESTS}::test_before_a_chain_is_pinned_all_that_answer_must_show_the_same",
        "the first URL is the wrong one, and the database is read from it for ever",
        fails_with=NOT_RAISED,
    ),
}

WHOM_TO_ASK = {
    "no fail-over": Mutant(
        NODES,
        (Swap("if not (is_quick and self._usable(but=tried)):", "if is_quick or not is_quick:"),),
        f"{NODES_TESTS}::test_the_work_begins_anew_at_the_other_endpoint",
        "what one endpoint does not give whole is not asked of another one",
        fails_with="ChainUnavailable",
    ),
    "no preference for the one that works": Mutant(
        NODES,
        (Swap("self._preferred = node\n", "pass\n"),),
        f"{NODES_TESTS}::test_another_endpoint_answers_where_one_fails_and_it_is_kept",
        "endpoints are changed with every recovery",
    ),
    "another endpoint within a call that was slow": Mutant(
        NODES,
        (Swap("is_quick = not isinstance(error, AnswerTooSlow) and ", "is_quick = "),),
        f"{NODES_TESTS}::test_a_time_out_is_left_to_the_caller_and_the_next_question_goes_to_another_endpoint_at_once",
        "one question outlasts the lease of whoever asks",
        fails_with=NOT_RAISED,
    ),
    "a pause although another endpoint is there": Mutant(
        SCANNER,
        (Swap("if self._nodes.has_usable and not", "if False and not"),),
        f"{SCAN_TESTS}::test_after_a_time_out_the_other_endpoint_is_asked_at_once",
        "payments are seen late while a good endpoint is there",
    ),
    "a Retry-After that is forgotten": Mutant(
        NODE,
        (Swap("return now >= max(self.until, self.not_before)", "return now >= self.until"),),
        f"{NODES_TESTS}::test_a_pause_that_an_endpoint_asks_for_is_kept_to_the_letter_while_another_one_is_used",
        "the provider bans us",
        fails_with=NOT_RAISED,
    ),
    "a set-aside that does not grow": Mutant(
        NODE,
        (Swap("min(self.failures - 1, 20)", "0"),),
        f"{NODES_TESTS}::test_one_that_fails_again_and_again_is_asked_ever_more_rarely_and_at_least_every_five_minutes",
        "a dead endpoint delays a commit every second",
    ),
    "a refusal that counts as a failure": Mutant(
        NODE,
        (
            Swap("self.failures += why is not Aside.REFUSES", "self.failures += 1"),
            Swap("0 if why is Aside.REFUSES else min", "min"),
        ),
        f"{NODES_TESTS}::test_a_refused_call_costs_the_endpoint_a_second_and_not_its_standing",
        "a balance that no endpoint keeps takes all endpoints from the scan",
    ),
    "a head that stands still unnoticed": Mutant(
        SCANNER,
        (Swap("            await self._nodes.compare_heads(self._chain, latest)\n", ""),),
        f"{SCAN_TESTS}::test_a_node_that_stopped_on_a_block_the_chain_gave_up_does_not_hold_the_network_back",
        "the endpoint in use died without a word, and nothing is seen any more",
    ),
    "a line at every failure": Mutant(
        NODE,
        (Swap("if is_passing or not (is_news or", "if not (True or"),),
        f"{NODES_TESTS}::test_it_is_told_once_that_an_endpoint_is_set_aside_then_every_hour_and_when_it_is_back",
        "the log is full of one dead endpoint",
    ),
    "turns that do not queue": Mutant(
        RATE,
        (Swap("        self._next_at = turn + self.gap_seconds\n", ""),),
        f"{RATE_TESTS}::test_whoever_asks_at_the_same_time_comes_one_after_the_other",
        "a throttling endpoint is asked as often as before",
    ),
    "an answer's size that counts as throttling": Mutant(
        RPC,
        (Swap("if self.code == -32005 and self._says(OF_SIZE):", "if self.code == 0:"),),
        f"{RATE_TESTS}::test_what_is_too_much_at_a_time_is_no_throttling[a range hint]",
        "the scan waits for ever, instead of asking for less",
    ),
}

OF_ENDPOINTS = WHOM_TO_BELIEVE | WHOM_TO_ASK
