"""A random walk through the plan: an imagined system answers its commands, in any order, with anything that can happen.

Every invariant below was seen to fail when its guard was taken out of the plan: the look at the pid in `holder`, at
the phase in `_exited` and `_not_forked`, at the state in `ask_to_leave`, `retired` in `_drain`,
the monitor's exemption in `_drain`, the deadline in `draining`, the phase in `_forked`; of the turnover: the look
at who is settled and at the spare seat in `_replace_next`, the generation in `_spare_left`.
"""

import random
from collections import Counter
from collections.abc import Callable
from signal import SIGABRT, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU

import pytest

from reconsup.fleet import plan
from reconsup.fleet.plan import (
    Accept,
    Beat,
    Bury,
    Command,
    Event,
    Exited,
    Finish,
    Fleet,
    Forked,
    Grown,
    Leaving,
    Limits,
    Loaded,
    NotForked,
    Overslept,
    Phase,
    Ready,
    Refuse,
    Reload,
    Send,
    Signalled,
    Spawn,
    Terms,
    Tick,
)
from reconsup.fleet.slot import LIVE, MONITOR, MOVES, PROBE, SPARE, Cause, Slot, WorkerState
from reconsup.fleet.state import STEPS

EVENTS = 100_000
WORKERS = 3
WORKERS_MAX = 6
CODES = ((0, 0, 1, 3, 69, 70, -9, -11, -15), (1, -9), (69,), (78,))  # a world has one of these
FINAL_STEPS_MAX = 400
CALM_STEPS_MAX = 3000
LIMITS = (Limits(), Limits(watchdog_seconds=5, recycle_seconds=40, recycle_bytes=100, drain_seconds=5, boot_seconds=4))
SETTLED = (WorkerState.READY, WorkerState.PARKED)


class World:
    """The system as the plan sees it, and what must be true of it after every step."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.codes = chance.choice(CODES)
        self.now = 1000.0
        self.readings = 0
        self.fleet: Fleet = plan.new(self.terms(), self.now)
        self.live: dict[int, int] = {}
        self.forking: list[int] = []
        self.aborted: set[int] = set()
        self.killed: set[int] = set()
        self.told: set[int] = set()
        self.pids = 0
        self.finished: list[int] = []
        self.outcomes: list[str] = []
        self.steps = 0
        self.phases: set[tuple[Phase, Phase]] = set()

    def terms(self) -> Terms:
        least = self.chance.randint(1, WORKERS)
        most = self.chance.choice([least, self.chance.randint(least, WORKERS_MAX)])
        return Terms(self.readings, least, most, self.chance.choice(LIMITS))

    def happen(self, event: Event) -> None:
        before = self.fleet
        self.fleet, commands = plan.step(before, event, self.now)
        self.steps += 1
        self.phases.add((before.phase, self.fleet.phase))
        self.check_terms(before, commands)
        for command in commands:
            self.perform(command, before)
        self.check()

    def check_terms(self, before: Fleet, commands: tuple[Command, ...]) -> None:
        """Settings come into force by being accepted and by nothing else."""
        accepted = [each.generation for each in commands if isinstance(each, Accept)]
        assert len(accepted) <= 1
        if accepted:
            assert self.fleet.terms.generation == accepted[0] > before.terms.generation
        else:
            assert self.fleet.terms is before.terms
        if any(isinstance(each, Refuse) for each in commands):
            assert self.fleet.wanted == before.wanted

    def perform(self, command: Command, before: Fleet) -> None:
        match command:
            case Spawn(slot, generation):
                assert before.phase in (Phase.PROBING, Phase.RUNNING), "spawned while draining"
                assert (slot == PROBE) == (before.phase is Phase.PROBING)
                assert slot not in self.live, "two processes in one slot"
                assert slot not in self.forking
                offers = [self.fleet.offer.generation] if self.fleet.offer and slot == SPARE else []
                assert generation in (self.fleet.terms.generation, *offers), "forked with old settings"
                self.forking.append(slot)
                if self.chance.random() < 0.9:  # the supervisor answers at once, but the plan need not know
                    self.answer_fork()
            case Send():
                self.send(command)
            case Bury(slot):
                assert slot not in self.live, "buried alive"
            case Accept() | Refuse():
                self.outcomes.append(type(command).__name__)
            case Finish(code):
                assert not self.live, "somebody is left behind"
                assert not self.forking
                self.finished.append(code)

    def send(self, send: Send) -> None:
        assert self.live.get(send.slot) == send.pid, "a signal for somebody who was reaped"
        if send.number is SIGKILL:
            assert send.pid not in self.killed, "killed twice"
            self.killed.add(send.pid)
        elif send.number is SIGABRT:
            assert send.pid not in self.aborted | self.killed, "aborted twice"
            self.aborted.add(send.pid)
        else:
            assert send.number is SIGTERM
            assert send.pid not in self.told | self.aborted | self.killed, "told twice"
            self.told.add(send.pid)
            if send.cause is None:
                assert self.fleet.phase is Phase.DRAINING
            if send.slot == MONITOR:
                assert send.cause or set(self.live) == {MONITOR}, "the monitor was told before the last worker left"
            if send.cause in (Cause.RELOAD, Cause.RECYCLE) and 0 <= send.slot < SPARE:
                self.check_replaced(send.slot)

    def check_replaced(self, slot: int) -> None:
        """Whoever leaves for another's sake leaves as many behind as are wanted, and is the only one."""
        spare = self.fleet.slots[SPARE]
        assert (spare.state, spare.generation) == (WorkerState.READY, self.fleet.terms.generation)
        others = [each.state for each in self.fleet.seats() if each.number != slot]
        assert all(state in SETTLED for state in others), "two at once"

    def check(self) -> None:
        fleet = self.fleet
        assert bool(self.finished) == (fleet.phase is Phase.DONE)
        assert len(self.finished) <= 1
        assert fleet.terms.least <= WORKERS
        assert fleet.wanted >= 1
        for number, slot in fleet.slots.items():
            assert slot.pid == self.live.get(number)
            assert slot.is_live == (number in self.live or number in self.forking)
            is_wanted = number == MONITOR or 0 <= number < fleet.wanted
            if slot.state is WorkerState.PARKED:
                assert slot.deadline is None
            elif slot.is_live and slot.pid is not None:
                is_dying = slot.doom is not None and slot.pid in self.killed
                assert slot.deadline is not None or is_dying, "nothing will ever move it"
            elif not slot.is_live and fleet.phase is Phase.RUNNING and is_wanted:
                assert slot.deadline is not None, "nobody will ever sit there again"
            elif not slot.is_live and number > fleet.wanted and number != SPARE:
                assert slot.deadline is None, "somebody would sit where nobody is wanted"
            if fleet.phase is Phase.DRAINING and not slot.is_live:
                assert slot.deadline is None
            elif fleet.phase is Phase.DRAINING and slot.pid is not None and number != MONITOR:
                assert slot.state is WorkerState.DRAINING or slot.doom is not None, "nobody told it to leave"

    def answer_fork(self) -> None:
        slot = self.forking.pop(0)
        if self.chance.random() < 0.1:
            self.happen(NotForked(slot, self.chance.random()))
        else:
            self.pids += 1
            self.live[slot] = self.pids
            self.happen(Forked(slot, self.pids, self.chance.random()))

    def exit(self, slot: int, code: int | None = None) -> None:
        pid = self.live.pop(slot)
        if code is None:
            code = -SIGKILL if pid in self.killed else self.chance.choice(self.codes)
            if slot == PROBE and pid not in self.killed and self.chance.random() < 0.9:
                code = 0
        self.happen(Exited(slot, pid, code, self.chance.random()))

    def tick(self) -> None:
        deadline = plan.next_deadline(self.fleet)
        if deadline is not None and self.chance.random() < (0.5 if deadline - self.now < 31 else 0.02):
            self.now = max(self.now, deadline)
        else:
            self.now += self.chance.expovariate(1)
        self.happen(Tick())

    def wander(self) -> None:
        """Anything that can happen, likely or not."""
        slot = self.chance.choice([PROBE, MONITOR, SPARE, *range(WORKERS)])
        pid = self.live.get(slot)
        kinds = ["say", "exit", "stale", "stop", "count", "reload", "look", "sleep", "fork", "tick"]
        kind = self.chance.choices(kinds, [30, 12, 5, 0.3, 2, 1.5, 5, 1, 10, 30])[0]
        if kind == "say" and pid is not None and pid not in self.killed:
            self.say(slot, pid)
        elif kind == "exit" and pid is not None:
            self.exit(slot)
        elif kind == "stale":  # of somebody who is long gone, or was never there
            stale = self.chance.randrange(self.pids + 1) if pid is None else 0
            events: list[Event] = [Ready(slot, stale), Leaving(slot, stale), Exited(slot, stale, 1, 0.0)]
            self.happen(self.chance.choice(events))
        elif kind == "stop":
            self.happen(Signalled(self.chance.choice([SIGTERM, SIGINT, SIGTERM, SIGINT, SIGQUIT])))
        elif kind == "count":
            self.happen(
                Signalled(self.chance.choice([SIGTTIN, SIGTTOU])) if self.fleet.wanted < WORKERS_MAX else Tick()
            )
        elif kind == "reload":
            self.readings += 1
            self.happen(Reload(self.terms()))
        elif kind == "look":
            self.happen(Loaded(self.chance.choice([0, 100]), self.chance.choice([0, 0, 100])))
        elif kind == "sleep":
            self.now += 50
            self.happen(Overslept(50))
        elif kind == "fork" and self.forking:
            self.answer_fork()
        else:
            self.tick()

    def say(self, slot: int, pid: int) -> None:
        events: list[Event] = [Ready(slot, pid), Beat(slot, pid, self.now), Grown(slot, pid, 101), Leaving(slot, pid)]
        self.happen(self.chance.choices(events, [10, 10, 1, 1])[0])

    def calm_down(self) -> None:
        """From here on everybody does what is asked: it must come to rest, with the settings that are in force."""
        self.chance = random.Random(1)
        for _ in range(CALM_STEPS_MAX):
            if self.fleet.phase is Phase.DONE or self.is_at_rest():
                return
            if self.forking:
                self.answer_fork()
            for slot, pid in list(self.live.items()):
                if self.live.get(slot) != pid:
                    continue
                at = self.fleet.slots[slot]
                if pid in self.killed | self.aborted | self.told:
                    self.exit(slot, 0 if pid not in self.killed else -9)
                elif slot == PROBE:
                    self.exit(slot, 0)
                else:
                    self.happen(Ready(slot, pid) if at.state is WorkerState.BOOTING else Beat(slot, pid, self.now))
                    if at.state is WorkerState.DRAINING:  # it had been told by somebody else
                        self.exit(slot, 0)
            self.now += 1
            self.happen(Tick())
        raise AssertionError("it does not come to rest")

    def is_at_rest(self) -> bool:
        fleet = self.fleet
        seats = fleet.seats()
        if fleet.phase is not Phase.RUNNING or fleet.offer or self.forking or len(seats) < fleet.wanted:
            return False
        is_filled = all(slot.state in SETTLED for slot in seats)
        is_fresh = fleet.is_stalled() or (fleet.spare() is None and not fleet.has_stale())
        return is_filled and is_fresh and all(not slot.is_worn for slot in seats if not fleet.is_stalled())

    def come_to_an_end(self) -> None:
        """Told to stop, and nobody listens: the deadlines alone must end it."""
        self.happen(Signalled(SIGTERM))
        for _ in range(FINAL_STEPS_MAX):
            if self.fleet.phase is Phase.DONE:
                return
            if self.forking:
                self.answer_fork()
            dying = [slot for slot, pid in self.live.items() if pid in self.killed]
            if dying:
                self.exit(self.chance.choice(dying))
            else:
                deadline = plan.next_deadline(self.fleet)
                self.now = max(self.now, deadline or self.now)
                self.happen(Tick())
        raise AssertionError("it does not come to an end")


def moves_of(put: Callable[[Fleet, Slot], Fleet], moves: Counter[tuple[WorkerState, WorkerState]]) -> object:
    """The same `put`, which counts the way that each slot goes from state to state."""

    def counted(fleet: Fleet, slot: Slot) -> Fleet:
        before = fleet.slots.get(slot.number, Slot(slot.number)).state
        moves[before, slot.state] += before is not slot.state
        return put(fleet, slot)

    return counted


def test_random_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of states are what the walk saw: seen to fail with a line taken out of them, and with one put in."""
    chance = random.Random(20240607)
    steps, ends, seen, outcomes = 0, [], set(), set()
    moves: Counter[tuple[WorkerState, WorkerState]] = Counter()
    phases: set[tuple[Phase, Phase]] = set()
    monkeypatch.setattr(Fleet, "put", moves_of(Fleet.put, moves))
    while steps < EVENTS:
        world = World(chance)
        for _ in range(chance.choice([5, 50, 500])):
            world.wander()
            seen |= {(world.fleet.phase, slot.state) for slot in world.fleet.slots.values()}
            if world.fleet.phase is Phase.DONE:
                break
        else:
            if chance.random() < 0.5:
                world.calm_down()
            if world.fleet.phase is not Phase.DONE:
                world.come_to_an_end()
        steps += world.steps
        ends += world.finished
        outcomes |= set(world.outcomes)
        phases |= world.phases

    assert {0, 69, 70, 78} == set(ends)
    # the walk went everywhere
    assert {(Phase.RUNNING, state) for state in WorkerState} <= seen
    assert {(Phase.DRAINING, state) for state in LIVE} <= seen
    assert outcomes == {"Accept", "Refuse"}
    assert {move for move, times in moves.items() if times} == set(MOVES)
    through = {(before, Phase.DONE) for before, after in STEPS if after is Phase.DRAINING}  # nobody was there to drain
    assert {step for step in phases if step[0] is not step[1]} - through == set(STEPS)
