"""An endurance run: when what is done to two hosts under load, and what is looked at on the way.

The schedule is drawn from a seed: a list of moments and acts (tests.support.havoc). One thread performs it, each act as
soon as its moment has come and the one before is done.
"""

import heapq
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tests.support import havoc, vitals
from tests.support.arena import DRAIN_SECONDS
from tests.support.havoc import Plan, Run

LOOK_SECONDS = 1.0
OUTLIVES_SECONDS = DRAIN_SECONDS + 0.25 + LOOK_SECONDS  # seen up to a look later
Act = tuple[float, Callable[[Run], None]]


def schedule(plan: Plan) -> list[Act]:
    """What is done when, in order. Host b loses its supervisor in the first third only: one life of it is long."""
    chance = random.Random(plan.seed)
    first, last = 0.02 * plan.seconds, plan.seconds

    def moments(count: int, before: float = last, after: float = first) -> list[float]:
        """One in each of so many equal parts of the time."""
        part = (before - after) / max(count, 1)
        return [after + part * (number + chance.random()) for number in range(count)]

    acts: list[Act] = [(at, havoc.kill_child) for at in moments(plan.worker_kills)]
    of_b = plan.supervisor_kills // 5
    acts += [(at, partial(havoc.kill_supervisor, name="a")) for at in moments(plan.supervisor_kills - of_b)]
    acts += [(at, partial(havoc.kill_supervisor, name="b")) for at in moments(of_b, last / 3)]
    acts += [(at, havoc.cut_connections) for at in moments(plan.cuts)]
    acts += [(at, havoc.fall) for at in moments(plan.restarts_of_postgresql)]
    acts += [(at, havoc.begin_faults) for at in moments(plan.bursts)]
    acts += [(at, havoc.stall_child) for at in moments(plan.stalls)]
    acts += [(at, partial(havoc.freeze, name=chance.choice("ab"))) for at in moments(plan.freezes)]
    acts += [(at, havoc.storm) for at in moments(plan.storms)]
    acts += [(at, partial(havoc.stop_and_start, name="a")) for at in moments(plan.stops)]
    acts += [(at, havoc.turn_over) for at in moments(plan.turnovers)]
    acts += [(at, havoc.grow) for at in moments(plan.resizes)]
    # Not where a supervisor may be killed meanwhile: an orphan that is stopped can neither leave nor be ended by
    # anybody but who started its supervisor. systemd does that; this manager does not.
    acts += [(at, partial(havoc.hang, name="b")) for at in moments(plan.hangs, last, 0.4 * last)]
    return sorted(acts, key=lambda act: act[0])


# the run


def perform(run: Run, acts: Sequence[Act], say: Callable[[str], None] = print) -> None:
    """Do all of it, looking on the way; each act that lasts ends, so at the end nothing is away."""
    run.began = time.monotonic()
    for at, act in acts:
        run.plan_act(at, act)
    _do_all(run)
    for name in run.hosts:  # after the last TTOU: HUP, so many workers as the settings say
        havoc.restore(run, name)
    _do_all(run)
    say(f"schedule of {run.plan.seconds:g} s done in {run.passed:.0f} s")


def _do_all(run: Run) -> None:
    next_look = 0.0
    while run.to_do:
        at, _, act = heapq.heappop(run.to_do)
        while True:
            if run.passed >= next_look:
                next_look = run.passed + LOOK_SECONDS
                look(run)
            if run.passed >= at:
                break
            time.sleep(max(0.0, min(at - run.passed, 0.05)))
        act(run)


def look(run: Run) -> None:
    """Who outlives its supervisor; files, descriptors, memory; whether customers still come."""
    run.arena.trade.check()
    now = time.time()
    for name, host in run.hosts.items():
        for pid, life in host.outliving().items():
            assert life.ended_at is not None
            seconds = now - life.ended_at - _away_seconds(run, life.ended_at, now)
            if seconds > OUTLIVES_SECONDS and pid not in run.outliving:
                run.broken.append(
                    f"{pid} of {host.name}, life {life.number}, outlives its supervisor by {seconds:.1f} s"
                )
            if seconds > OUTLIVES_SECONDS:
                run.outliving[pid] = seconds
        if not run.open_since and host.is_up and (sample := vitals.look(host, now)) is not None:
            run.samples[name].append(sample)


def _away_seconds(run: Run, begin: float, end: float) -> float:
    """How long of that time something was away or frozen."""
    windows = [*run.windows, *((since, end) for since in run.open_since.values())]
    return sum(max(0.0, min(end, to) - max(begin, since)) for since, to in windows)


@contextmanager
def told_on_failure(run: Run) -> Iterator[None]:
    """When it fails: the seed, what was done last, and the ends of the logs."""
    try:
        yield
    except BaseException:
        print(f"\nFAILED: {run.plan}\nlast done:")
        for at, what in run.done[-40:]:
            print(f"  {at:.3f} {what}")
        for host in run.hosts.values():
            for life in host.lives[-2:]:
                words = life.program.log.read_text()
                print(f"--- {host.name}, life {life.number}, ended with {life.code}:\n{words[-5000:]}")
        raise
