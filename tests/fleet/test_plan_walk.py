"""A random walk through the plan: an imagined system answers its commands, in any order, with anything that can happen.

Every invariant below was seen to fail when its guard was taken out of the plan: the look at the pid in `_holder`, at
the phase in `_exited` and `_not_forked`, at `doom` in `_kill`, at the state in `_ask_to_leave`, `retired` in `_drain`,
the monitor's exemption in `_drain`, the deadline in `draining`, the phase in `_forked`.
"""

import random
from signal import SIGINT, SIGKILL, SIGQUIT, SIGTERM

from reconsup.fleet import plan
from reconsup.fleet.plan import (
    Bury,
    Command,
    Event,
    Exited,
    Finish,
    Fleet,
    Forked,
    Leaving,
    Limits,
    NotForked,
    Phase,
    Ready,
    Send,
    Signalled,
    Spawn,
    Tick,
)
from reconsup.fleet.slot import LIVE, MONITOR, PROBE, WorkerState

EVENTS = 100_000
WORKERS = 3
CODES = ((0, 0, 1, 3, 69, 70, -9, -11, -15), (1, -9), (69,), (78,))  # a world has one of these
FINAL_STEPS_MAX = 200


class World:
    """The system as the plan sees it, and what must be true of it after every step."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.codes = chance.choice(CODES)
        self.now = 1000.0
        self.fleet: Fleet = plan.new(WORKERS, Limits(), self.now)
        self.live: dict[int, int] = {}
        self.forking: list[int] = []
        self.killed: set[int] = set()
        self.told: set[int] = set()
        self.pids = 0
        self.finished: list[int] = []
        self.steps = 0

    def happen(self, event: Event) -> None:
        phase = self.fleet.phase
        self.fleet, commands = plan.step(self.fleet, event, self.now)
        self.steps += 1
        for command in commands:
            self.perform(command, phase)
        self.check()

    def perform(self, command: Command, phase: Phase) -> None:
        match command:
            case Spawn(slot):
                assert phase in (Phase.PROBING, Phase.RUNNING), "spawned while draining"
                assert (slot == PROBE) == (phase is Phase.PROBING)
                assert slot not in self.live, "two processes in one slot"
                assert slot not in self.forking
                self.forking.append(slot)
                if self.chance.random() < 0.9:  # the supervisor answers at once, but the plan need not know
                    self.answer_fork()
            case Send(slot, pid, number, cause):
                assert self.live.get(slot) == pid, "a signal for somebody who was reaped"
                assert (number is SIGKILL) == (cause is not None)
                if number is SIGKILL:
                    assert pid not in self.killed, "killed twice"
                    self.killed.add(pid)
                else:
                    assert number is SIGTERM
                    assert pid not in self.told | self.killed, "told twice"
                    self.told.add(pid)
                    assert self.fleet.phase is Phase.DRAINING
                    if slot == MONITOR:
                        assert set(self.live) == {MONITOR}, "the monitor was told before the last worker left"
            case Bury(slot, pid):
                assert slot not in self.live, "buried alive"
            case Finish(code):
                assert not self.live, "somebody is left behind"
                assert not self.forking
                self.finished.append(code)

    def check(self) -> None:
        fleet = self.fleet
        assert bool(self.finished) == (fleet.phase is Phase.DONE)
        assert len(self.finished) <= 1
        for number, slot in fleet.slots.items():
            assert slot.pid == self.live.get(number)
            assert slot.is_live == (number in self.live or number in self.forking)
            if slot.state is WorkerState.PARKED:
                assert slot.deadline is None
            elif slot.is_live and slot.state is not WorkerState.READY and slot.pid is not None:
                assert slot.deadline is not None or slot.doom is not None, "nothing will ever move it"
            elif not slot.is_live and fleet.phase is Phase.RUNNING and number != PROBE:
                assert slot.deadline is not None, "nobody will ever sit there again"
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
            self.happen(Forked(slot, self.pids))

    def exit(self, slot: int) -> None:
        pid = self.live.pop(slot)
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
        slot = self.chance.choice([PROBE, MONITOR, *range(WORKERS)])
        pid = self.live.get(slot)
        kind = self.chance.choices(["say", "exit", "stale", "signal", "fork", "tick"], [30, 20, 5, 0.5, 10, 30])[0]
        if kind == "say" and pid is not None and pid not in self.killed:
            self.happen(Ready(slot, pid) if self.chance.random() < 0.8 else Leaving(slot, pid))
        elif kind == "exit" and pid is not None:
            self.exit(slot)
        elif kind == "stale":  # of somebody who is long gone, or was never there
            stale = self.chance.randrange(self.pids + 1) if pid is None else 0
            events: list[Event] = [Ready(slot, stale), Leaving(slot, stale), Exited(slot, stale, 1, 0.0)]
            self.happen(self.chance.choice(events))
        elif kind == "signal":
            self.happen(Signalled(self.chance.choice([SIGTERM, SIGINT, SIGTERM, SIGINT, SIGQUIT])))
        elif kind == "fork" and self.forking:
            self.answer_fork()
        else:
            self.tick()

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


def test_random_walk() -> None:
    chance = random.Random(20240607)
    steps, ends, seen = 0, [], set()
    while steps < EVENTS:
        world = World(chance)
        for _ in range(chance.choice([5, 50, 500])):
            world.wander()
            seen |= {(world.fleet.phase, slot.state) for slot in world.fleet.slots.values()}
            if world.fleet.phase is Phase.DONE:
                break
        else:
            world.come_to_an_end()
        steps += world.steps
        ends += world.finished

    assert {0, 69, 70, 78} == set(ends)
    # the walk went everywhere
    assert {(Phase.RUNNING, state) for state in WorkerState} <= seen
    assert {(Phase.DRAINING, state) for state in LIVE} <= seen
