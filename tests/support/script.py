"""Random scripts for `Players`: drawn from a seed, played step by step, shortened when they fail.

A script is data: (act, number, number, number) for each step, and what the numbers mean depends only on what the
players have then. So a seed is the whole test, any part of a script is a script, and a failure is told as the shortest
list of steps that was found.
"""

from collections import Counter
from collections.abc import Callable
from random import Random

from reconsup.store.database import Database
from tests.support.players import ADDRESSES, Players
from tests.support.stage import WORKERS, Hand, Stage, Worker

Step = tuple[str, int, int, int]
Script = list[Step]
STATUSES = ("pending", "detected", "confirmed", "reorged", "expired", "failed")
TRIES_MAX = 400


def write(seed: int, steps: int) -> Script:
    """The script of a seed."""
    random = Random(seed)
    names = list(ACTS)
    weights = [ACTS[name][0] for name in names]
    return [
        (random.choices(names, weights)[0], random.randrange(60), random.randrange(60), random.randrange(60))
        for _ in range(steps)
    ]


def play(stage: Stage, script: Script, tally: Counter[str] | None = None) -> tuple[int, str] | None:
    """Play it from an empty database to rest; the step (from 0) that failed and how, or None."""
    players = Players(stage)
    done = 0
    try:
        for act, *numbers in script:
            ACTS[act][1](players, *numbers)
            players.compare()
            done += 1
        players.come_to_rest()
        players.compare()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told with its steps
        return done, f"{type(error).__name__}: {error}"
    finally:
        if tally is not None:
            tally.update(players.world.refused)
            tally.update(steps=done, grants=players.world.grants, written=players.written)
    return None


def shorten(stage: Stage, script: Script) -> Script:
    """A shorter script that fails too: parts are left out as long as it does, big ones first."""
    failed = play(stage, script)
    assert failed is not None
    script, size, tries = script[: failed[0] + 1], max(1, len(script) // 2), 0
    while tries < TRIES_MAX:
        for start in range(0, len(script), size):
            tries += 1
            shorter = script[:start] + script[start + size :]
            if play(stage, shorter) is not None:
                script = shorter
                break
        else:
            if size == 1:
                break
            size //= 2
    return script


# Who, which row, whose hand: those that are in the middle of something come first.


def _worker(players: Players, number: int) -> Worker:
    return players.workers[number % WORKERS]


def _holding(players: Players, number: int) -> tuple[Worker, Hand] | None:
    found = [(worker, worker.hand) for worker in players.workers if worker.hand is not None]
    return found[number % len(found)] if found else None


def _id(players: Players, number: int) -> str | None:
    """Every other time a row that somebody holds, if there is one."""
    rows = players.world.rows
    held = sorted(id_ for id_, row in rows.items() if row.owner is not None)
    ids = held if held and number % 2 else sorted(rows)
    return ids[number // 2 % len(ids)] if ids else None


def _address(players: Players, number: int) -> str:
    id_ = _id(players, number)
    return (
        ADDRESSES[number // 3 % len(ADDRESSES)] if id_ is None or number % 3 == 0 else players.world.rows[id_].address
    )


# The acts.


def _take(players: Players, who: int, limit: int, how: int) -> None:
    """Claim, admit, view and decide, with a clock that is an hour wrong or not; the decisions stay in hand."""
    worker = _worker(players, who)
    is_suspect = how % 10 == 0
    wrong_seconds = 3600.0 * (how % 3 - 1)
    players.claim(worker, 1 if is_suspect else 1 + limit % 4, suspects=is_suspect, wrong_seconds=wrong_seconds)
    if worker.hand is not None and how % 7:  # else it stops right behind the claim
        players.admit(players.stage.stores[worker.slot], worker.hand)
        players.look(players.stage.stores[worker.slot], worker.hand)


def _persist(players: Players, who: int, *_: int) -> None:
    """What was sent may be sent once more: by a zombie."""
    if found := _holding(players, who):
        players.persist(players.stage.stores[found[0].slot], found[1])
        players.lay_down(found[0])


def _go_on(players: Players, who: int, what: int, _: int) -> None:
    if found := _holding(players, who):
        _one_thing(players, players.stage.stores[found[0].slot], found[1], what)


def _wake(players: Players, who: int, what: int, _: int) -> None:
    """One that was paused goes on where it stood: mostly with its write."""
    if players.zombies:
        hand = players.zombies[-1 - who % len(players.zombies)]
        if what % 3:
            players.persist(players.stage.stores[WORKERS], hand)
        else:
            _one_thing(players, players.stage.stores[WORKERS], hand, what // 3)


def _one_thing(players: Players, store: Database, hand: Hand, what: int) -> None:
    match what % 5:
        case 0:
            players.admit(store, hand)
        case 1:
            players.look(store, hand)
        case 2:
            players.look(store, hand, failing=1)  # on its first row
        case _:
            players.renew(store, hand)


def _cycle(players: Players, who: int, limit: int, _: int) -> None:
    players.cycle(_worker(players, who), 1 + limit % 3)


def _pause(players: Players, who: int, how: int, _: int) -> None:
    """It stops in the middle; taken for dead, so that its slot's next incarnation begins, or not."""
    if found := _holding(players, who):
        players.lay_down(found[0])
        if how % 2:
            players.crash(found[0])


def _release(players: Players, who: int, *_: int) -> None:
    worker = found[0] if (found := _holding(players, who)) else _worker(players, who)
    players.release(worker)
    players.lay_down(worker)


def _crash(players: Players, who: int, *_: int) -> None:
    players.crash(found[0] if (found := _holding(players, who)) else _worker(players, who))


def _bury(players: Players, which: int, at: int, how: int) -> None:
    if players.dead:
        players.bury(which, _id(players, at) if how % 2 else None, is_charged=how % 3 > 0)


def _die(players: Players, who: int, times: int, how: int) -> None:
    """Up to four deaths, each at a row that the worker noted, and at the same one if it is suspected."""
    worker = _worker(players, who)
    for _ in range(1 + times % 4):
        for id_ in players.world.rows:
            players.time_passes(id_)
        are_suspects = bool(players.world.eligible(suspects=True))
        players.claim(worker, 1 if are_suspects else 1 + how % 3, suspects=are_suspects)
        noted = worker.hand.grants[0].id if worker.hand is not None else None
        players.crash(worker)
        players.bury(len(players.dead) - 1, noted, is_charged=True)
        players.compare()


def _commit(players: Players, first: int, second: int, how: int) -> None:
    paid = {_address(players, first), _address(players, second)} if how % 4 else set()
    players.commit(sorted(paid))


def _roll_back(players: Players, depth: int, how: int, _: int) -> None:
    players.roll_back(1 + depth % 3, is_mined_again=how % 3 > 0)


def _stop_or_start(players: Players, *_: int) -> None:
    players.start_again() if players.world.is_stopped else players.stop()


def _time_passes(players: Players, which: int, how: int, _: int) -> None:
    """For one row, for all that nobody holds, or for all."""
    rows = players.world.rows
    one = _id(players, which)
    free = [id_ for id_, row in rows.items() if row.owner is None]
    for id_ in [[one] if one else [], free, free, list(rows)][how % 4]:
        players.time_passes(id_)


def _by_hand(players: Players, which: int, status: int, _: int) -> None:
    if id_ := _id(players, which):
        players.by_hand(id_, STATUSES[status % len(STATUSES)])


def _old_time(players: Players, which: int, how: int, _: int) -> None:
    """The times of a zombie's claim are there again, if possible of one whose owner has the row anew; it may wake."""

    def is_twin(hand: Hand) -> bool:
        rows = players.world.rows
        return any(
            grant.id in rows and rows[grant.id].owner == grant.owner and not players.world.holds(grant)
            for grant in hand.grants
        )

    if zombies := [hand for hand in players.zombies if is_twin(hand)] or players.zombies:
        zombie = zombies[-1 - which % len(zombies)]
        players.old_time(zombie)
        if how % 2:
            players.persist(players.stage.stores[WORKERS], zombie)


def _older_reconciler(players: Players, which: int, *_: int) -> None:
    """It knows no epoch: it clears what is leased, and takes what is not."""
    if id_ := _id(players, which):
        (players.older_clears if players.world.rows[id_].is_live else players.older_takes)(id_)


def _other_service(players: Players, which: int, how: int, _: int) -> None:
    """It makes requests, also such as were paid before; seldom it deletes one."""
    id_ = _id(players, which)
    if how % 4 == 0 and id_:
        players.delete(id_)
    else:
        players.insert(ADDRESSES[which % len(ADDRESSES)])


ACTS: dict[str, tuple[int, Callable[..., None]]] = {
    "take": (20, _take),
    "persist": (14, _persist),
    "commit": (12, _commit),
    "time_passes": (12, _time_passes),
    "wake": (10, _wake),
    "roll_back": (5, _roll_back),
    "go_on": (4, _go_on),
    "cycle": (4, _cycle),
    "pause": (4, _pause),
    "by_hand": (6, _by_hand),
    "bury": (3, _bury),
    "die": (2, _die),
    "crash": (2, _crash),
    "release": (2, _release),
    "old_time": (3, _old_time),
    "older_reconciler": (2, _older_reconciler),
    "other_service": (2, _other_service),
    "scanner_changes": (1, lambda players, *_: players.scanner_changes()),
    "zombie_scans": (1, lambda players, *_: players.zombie_scans(ADDRESSES)),
    "stop_or_start": (1, _stop_or_start),
    "sweep": (2, lambda players, *_: players.sweep()),
}
