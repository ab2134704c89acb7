"""The monitor process: /metrics, /healthz, /readyz, /status and the page; beside it the janitor and the watch.

One process a host, forked by the supervisor like a worker, so that nothing here can break the supervisor: a hanging
client, a database that is away, a port that is taken cost at most these pages. It stops last: on TERM it
first gives back what the dead left. Requests never ask the database: they are told what the watch knows.
"""

import asyncio
import errno
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from aiohttp import web

from reconsup import logs, pulse
from reconsup.fleet import limits
from reconsup.fleet.posix import Scoreboard, Seat, WorkerState
from reconsup.fleet.state import Phase
from reconsup.monitor import janitor, metrics, status, watch
from reconsup.monitor.door import IDLE_SECONDS, Door
from reconsup.monitor.front import Front, manners
from reconsup.monitor.janitor import FAREWELL_SECONDS, Janitor
from reconsup.monitor.onlookers import Onlookers
from reconsup.monitor.page import CONTENT_TYPE, Page
from reconsup.monitor.status import Fleet, Known
from reconsup.payments.request import ETHEREUM, Network
from reconsup.settings import Settings
from reconsup.store.backlog import Host
from reconsup.store.database import Database
from reconsup.store.presence import Presence

IDENTIFIER = "monitor"
RETRY_PORT_SECONDS = 5.0
GOODBYE_SECONDS = 0.8
ORPHAN_SECONDS = FAREWELL_SECONDS + 2 * GOODBYE_SECONDS
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logs.get_logger()


def run(seat: Seat, settings: Settings) -> int:
    """The body of the monitor process; its exit code. Only a bug ends it before the supervisor says so."""
    limits.apply(oom_raise=limits.MONITOR_OOM_RAISE)
    logs.configure(settings.log_format, worker_id=seat.worker_id)
    metrics.open(seat.metrics_directory, IDENTIFIER)
    seat.end_if_orphaned(ORPHAN_SECONDS)
    asyncio.run(_run(seat, settings))
    return 0


async def _run(seat: Seat, settings: Settings) -> None:
    networks = [Network(ETHEREUM, name) for name in settings.networks]
    known = Known(
        settings.networks,
        watch.fresh_seconds(settings.poll_interval_seconds),
        lease_seconds=settings.lease_seconds,
        watchdog_seconds=settings.watchdog_seconds,
    )
    bell, stopping = asyncio.Event(), asyncio.Event()
    _hear(seat, bell, stopping)
    heart = pulse.Heart(seat.cell, settings.watchdog_seconds)
    url, name = settings.database_url, f"reconsup/{seat.incarnation}"
    database = partial(Database, url, application_name=name, on_wait=pulse.waits)
    async with (
        heart.ticking(),
        Presence(url, application_name=name) as presence,
        # two, so that a death never waits for a count of rows
        database(
            lease_seconds=min(settings.lease_seconds, janitor.WAIT_SECONDS), presence=presence, retries_max=0
        ) as for_janitor,
        database(lease_seconds=watch.WAIT_SECONDS, presence=presence) as for_watch,
        asyncio.TaskGroup() as tasks,
    ):
        presence.on_return.append(bell.set)
        onlookers = Onlookers()
        keeper = Janitor(seat, for_janitor, networks)
        seconds = watch.poll_seconds(settings.poll_interval_seconds)
        look = watch.Watch(
            for_watch,
            networks,
            host_of(seat.scoreboard),
            known,
            seconds=seconds,
            tell_load=seat.scoreboard.set_load,
            announcement=lambda: status.announcement(fleet_of(seat.scoreboard), known),
            onlookers=onlookers,
        )
        loops = [
            tasks.create_task(heart.watched("janitor", keeper.run(bell))),
            tasks.create_task(heart.watched("watch", look.run())),
        ]
        if settings.metrics_address is not None:
            app = application(lambda: fleet_of(seat.scoreboard), known, seat.metrics_directory, onlookers)
            loops.append(tasks.create_task(serve(app, *settings.metrics_address)))
        seat.cell.set_state(WorkerState.READY)
        log.info("monitor_started")
        await stopping.wait()
        for loop in loops:
            loop.cancel()
        _, unfinished = await asyncio.wait(loops, timeout=GOODBYE_SECONDS)
        if not unfinished:  # else the database hangs: there is nothing to be had from it
            await heart.watched("farewell", keeper.farewell())
            # else only this monitor is replaced (HUP), and the host works on
            is_end = seat.scoreboard.supervisor().phase == Phase.DRAINING
            if is_end and not seat.scoreboard.dead() and not seat.is_orphaned():
                await look.leave()
    log.info("monitor_stopped")
    hear_no_more()


def hear_no_more() -> None:
    """Nothing is left to be told. asyncio closes the pipe for signals before it lets go of them: one that came between
    the two was seen as a traceback.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.set_wakeup_fd(-1)


def host_of(scoreboard: Scoreboard) -> Host:
    """This host, as it announces itself to the others."""
    supervisor = scoreboard.supervisor()
    boot_id = None
    with suppress(OSError):
        boot_id = BOOT_ID.read_text(encoding="ascii").strip() or None
    return Host(
        base=scoreboard.base,
        boot_id=boot_id,
        pid=supervisor.pid,
        version=supervisor.version,
        slots=supervisor.slots,
        started_at=datetime.fromtimestamp(supervisor.started_at, UTC),
    )


def fleet_of(scoreboard: Scoreboard) -> Fleet:
    """The scoreboard at this moment."""
    supervisor = scoreboard.supervisor()
    return Fleet(
        pid=supervisor.pid,
        state=supervisor.phase,
        version=supervisor.version,
        started_at=datetime.fromtimestamp(supervisor.started_at, UTC),
        workers=tuple(scoreboard.read(slot) for slot in scoreboard.slots()),
        base=scoreboard.base,
        wanted=supervisor.wanted,
        reload=supervisor.reload,
        at=datetime.now(UTC),
        restarts=scoreboard.unasked(),
        deaths_overwritten=scoreboard.deaths_overwritten,
        crashes=scoreboard.crashes(),
    )


def application(
    read_fleet: Callable[[], Fleet], known: Known, metrics_directory: Path, onlookers: Onlookers | None = None
) -> web.Application:
    """All pages. `read_fleet` reads the scoreboard as it is at that moment."""
    page = Page(metrics_directory)
    told: set[str] = set()

    async def metrics_page(_: web.Request) -> web.Response:
        text = page.render(status.readings(read_fleet(), known, time.monotonic()))
        _tell_damaged(page.damaged, told)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # whoever answers has a supervisor: without one this process is gone

    async def readiness(_: web.Request) -> web.Response:
        reason = status.readiness(read_fleet(), known, time.monotonic())
        return web.Response(text="ready\n") if reason is None else web.Response(text=f"{reason}\n", status=503)

    async def status_page(_: web.Request) -> web.Response:
        return web.json_response(status.status(read_fleet(), known, time.monotonic()))

    app = web.Application(middlewares=[manners])
    app.add_routes(
        [
            *Front(read_fleet, known, onlookers or Onlookers()).routes(),
            web.get("/metrics", metrics_page),
            web.get("/healthz", health),
            web.get("/readyz", readiness),
            web.get("/status", status_page),
        ]
    )
    return app


def _tell_damaged(damaged: Mapping[str, str], told: set[str]) -> None:
    """One line a file, and one more if it is mended and damaged again."""
    for file in damaged.keys() - told:
        log.warning(
            "metrics_file_damaged",
            file=file,
            error=damaged[file],
            todo="nothing: what it held stands still until the next process in that seat begins a new one",
        )
    told.clear()
    told.update(damaged)


async def serve(app: web.Application, host: str, port: int) -> None:
    """Listen until cancelled. A port that cannot be had is asked for again and again: nothing else waits for it."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=GOODBYE_SECONDS / 2,
        keepalive_timeout=IDLE_SECONDS,
    )
    await runner.setup()
    assert runner.server is not None
    door = Door(runner.server, host, port)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    is_told = False
    try:
        while (error := await _refusal(door)) is not None:
            if not is_told:
                log.warning("not_listening", address=address, error=str(error), todo=_advice(error))
            is_told = True
            await asyncio.sleep(RETRY_PORT_SECONDS)
        log.info("listening", address=address)
        await asyncio.Event().wait()
    finally:
        door.close()
        await runner.cleanup()


async def _refusal(door: Door) -> OSError | None:
    """Start to listen; None, or why it cannot be."""
    try:
        await door.open()
    except OSError as error:
        return error
    return None


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens there: give this one another --metrics-address (empty: none)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "a port below 1024 needs privileges: choose one above"
    return "this is not an address of this machine: choose another --metrics-address"


def _hear(seat: Seat, bell: asyncio.Event, stopping: asyncio.Event) -> None:
    """TERM and the supervisor's death stop this process; a ring wakes the janitor."""
    loop = asyncio.get_running_loop()
    listener = seat.bell.listen()

    def rung() -> None:
        listener.drain()
        bell.set()

    def orphaned() -> None:
        loop.remove_reader(seat.lifeline_fd)
        log.error("supervisor_died")
        seat.end_within(ORPHAN_SECONDS)
        stopping.set()

    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(listener.fileno(), rung)
    loop.add_reader(seat.lifeline_fd, orphaned)
