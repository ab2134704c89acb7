"""The body of a forked worker: one event loop, a reconciler, a scanner and a reader of spans a network, and the drain.

Everything that owns a descriptor is born here, after the fork. At TERM (or when the supervisor is gone) the loops
finish what they have in hand, then every lease of this incarnation is given back, and the process exits 0. What it
cannot give back because the database is away, the lease's end or the janitor does.
"""

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import structlog
import uvloop

from reconsup import logs, pulse
from reconsup.chain.evm import EvmChain
from reconsup.chain.nodes import Nodes
from reconsup.chain.rpc import Endpoint
from reconsup.fleet import limits
from reconsup.fleet.posix import Seat, WorkerState
from reconsup.fleet.slot import EXIT_GAVE_UP
from reconsup.monitor import metrics
from reconsup.payments.decision import Policy
from reconsup.payments.request import ETHEREUM, Network
from reconsup.settings import Settings
from reconsup.store import leases
from reconsup.store.database import Database
from reconsup.store.errors import SchemaBehind, StoreRejected, StoreUnavailable
from reconsup.store.persist import Against
from reconsup.store.presence import Presence
from reconsup.store.revision import fetch_state
from reconsup.worker.auditor import Auditor, Terms
from reconsup.worker.pause import Pauses
from reconsup.worker.reconciler import Duty, Reconciler
from reconsup.worker.scanner import Scanner, Watch
from reconsup.worker.spans import Reading, SpanReader

EXIT_OK = 0
EXIT_UNAVAILABLE = 69
BATCHES_IN_HAND = 2  # while PostgreSQL works on one, decisions are made on the other
DATABASE_PATIENCE_SECONDS = 30.0  # at most, and half of the supervisor's boot deadline


def run(seat: Seat, settings: Settings) -> int:
    """Work until told to drain; the exit code. Called in the child, right after the fork."""
    limits.apply(oom_raise=limits.WORKER_OOM_RAISE, memory_max_mb=settings.memory_max_mb)
    logs.configure(settings.log_format, worker_id=seat.worker_id)
    metrics.open(seat.metrics_directory, str(seat.slot))
    calm_collector()
    seat.end_if_orphaned(settings.drain_seconds)
    return uvloop.run(_Worker(seat, settings).run())


def calm_collector() -> None:
    """Let Python look for garbage in circles rarely: a block is a thousand small dicts, all gone when it is decoded.

    By default it goes through them again and again meanwhile: a third of the time that near-empty blocks take.
    """
    gc.set_threshold(100_000, 20, 20)


class _Worker:
    def __init__(self, seat: Seat, settings: Settings) -> None:
        self._seat = seat
        self._settings = settings
        self._cell = seat.cell
        self._pauses = Pauses()
        self._presence = Presence(settings.database_url, application_name=f"reconsup/{seat.incarnation}")
        self._heart = pulse.Heart(seat.cell, settings.watchdog_seconds)
        self._log = structlog.get_logger()
        self._networks = [Network(ETHEREUM, name) for name in settings.networks]
        self._nodes: dict[Network, Nodes] = {}

    async def run(self) -> int:
        """The whole life of the worker."""
        networks = [network.name for network in self._networks]
        self._log.info("worker_started", slot=self._seat.slot, lease_owner=self._seat.owner, networks=networks)
        self._listen()
        code = EXIT_OK
        try:
            async with self._heart.ticking():
                code = await self._live()
        except* SchemaBehind as group:
            self._log.error("schema_behind", todo=str(group.exceptions[0]))
            code = EXIT_UNAVAILABLE
        except* StoreUnavailable:
            code = EXIT_UNAVAILABLE
        self._log.info("worker_stopped", code=code)
        return code

    async def _live(self) -> int:
        """Boot, work, leave: in each of them something is watched."""
        async with self._presence, AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(self._database()) for _ in range(BATCHES_IN_HAND)]
            with self._heart.pulse("boot"):
                is_ready = await self._wait_for_database(databases[0])
            if is_ready:
                self._presence.on_loss.append(self._tell_loss)
                await self._work(stack, databases)
            stack.enter_context(self._heart.pulse("leaving"))
            return await self._give_back(databases[0]) if is_ready else EXIT_OK

    async def _loop(self, name: str, work: Awaitable[None]) -> None:
        """One work loop, watched. Without memory it must not limp on: what it would lose on the way nobody knows."""
        try:
            await self._heart.watched(name, work)
        except MemoryError:
            self._die_of_memory(name)

    def _die_of_memory(self, loop: str) -> NoReturn:
        """End at once, with everything leased: the janitor gives it back."""
        self._log.error(
            "out_of_memory",
            loop=loop,
            memory_max_mb=self._settings.memory_max_mb,
            todo="raise RECONSUP_MEMORY_MAX_MB, or lower PAYMENT_REQUEST_RECONCILER_BATCH_SIZE",
        )
        os._exit(EXIT_GAVE_UP)

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), MemoryError):
            self._die_of_memory("event loop")
        loop.default_exception_handler(context)

    def _listen(self) -> None:
        """Signals, the supervisor's death, the bell, and what a callback raises."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._callback_failed)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain, signal.Signals(number).name)
        loop.add_reader(self._seat.lifeline_fd, self._orphaned)
        listener = self._seat.bell.listen()

        def rung() -> None:
            listener.drain()
            self._pauses.ring()

        loop.add_reader(listener.fileno(), rung)

    def _drain(self, cause: str) -> None:
        if not self._pauses.stopping.is_set():
            self._log.info("worker_draining", cause=cause)
            self._cell.set_state(WorkerState.DRAINING)
        self._pauses.stop()

    def _orphaned(self) -> None:
        """The supervisor is gone: nobody will enforce the drain's end, so the kernel must."""
        asyncio.get_running_loop().remove_reader(self._seat.lifeline_fd)
        self._seat.end_within(self._settings.drain_seconds)
        self._drain("supervisor_died")

    def _tell_loss(self, problem: StoreUnavailable) -> None:
        """Whichever loop has met it: a schema that is not ours is one alarm."""
        if isinstance(problem, SchemaBehind):
            self._log.error(
                "schema_behind",
                error=str(problem),
                todo="run `reconsup migrate`, or the reconsup that this schema was made for; until then nothing is "
                "done here, then it goes on by itself",
            )

    def _database(self) -> Database:
        return Database(
            self._settings.database_url,
            application_name=f"reconsup/{self._seat.incarnation}",
            lease_seconds=self._settings.lease_seconds,
            presence=self._presence,
            on_wait=pulse.waits,
        )

    async def _wait_for_database(self, database: Database) -> bool:
        """Ready is who has found its schema in the database; False if the drain began before.

        Raises StoreUnavailable after a while: to leave and come again costs no restart, to miss the boot deadline does.
        Raises SchemaBehind.
        """
        pause = self._pauses.pause()
        is_told = False
        try:
            async with asyncio.timeout(min(DATABASE_PATIENCE_SECONDS, self._settings.boot_seconds / 2)):
                while not pause.is_stopping:
                    try:
                        state = await fetch_state(database)
                    except StoreUnavailable as error:
                        if not is_told:
                            self._log.warning("database_away", error=str(error))
                        is_told = True
                        await pause.for_database(database)
                    else:
                        if not state.is_ready:
                            raise SchemaBehind(state.sentence())
                        self._cell.set_state(WorkerState.READY)
                        return True
        except TimeoutError:
            raise StoreUnavailable("the database did not answer in time") from None
        return False

    async def _work(self, stack: AsyncExitStack, databases: list[Database]) -> None:
        scanners = {network: await self._scanner(stack, network) for network in self._networks}
        reconciler = Reconciler(
            self._duty(),
            databases,
            self._cell,
            self._pauses.pause(),
            is_served=lambda network: scanners[network].is_served,
        )
        auditors = [
            await self._auditor(stack, network, scanner)
            for network, scanner in scanners.items()
            if self._settings.audits_balances(network.name)
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop("reconciler", reconciler.run()), name="reconciler")
            for auditor in auditors:
                name = f"auditor-{auditor.network.name}"
                group.create_task(self._loop(name, auditor.run()), name=name)
            for network, scanner in scanners.items():
                name = f"scanner-{network.name}"
                group.create_task(self._loop(name, scanner.run()), name=name)
                reader = await self._span_reader(stack, network, scanner)
                name = f"spans-{network.name}"
                group.create_task(self._loop(name, reader.run()), name=name)
            group.create_task(self._pauses.stopping.wait(), name="drain")

    async def _auditor(self, stack: AsyncExitStack, network: Network, scanner: Scanner) -> Auditor:
        return Auditor(
            Terms(
                network=network,
                poll_interval_seconds=self._settings.poll_interval_seconds,
                audit_blocks=self._settings.audit_blocks,
                expiry_confirmations=self._settings.expiry_confirmations,
                expiry_grace_seconds=self._settings.expiry_grace_seconds,
            ),
            await stack.enter_async_context(self._database()),
            self._nodes[network].apart(),  # who cannot tell balances may yet be scanned
            scanner,
            self._seat.bell,
            self._pauses.pause(),
        )

    async def _scanner(self, stack: AsyncExitStack, network: Network) -> Scanner:
        self._nodes[network] = await self._all_nodes(stack, network)
        return Scanner(
            Watch(
                network=network,
                owner=self._seat.owner,
                lease_seconds=self._settings.lease_seconds,
                poll_interval_seconds=self._settings.poll_interval_seconds,
                tail_blocks=self._settings.tail_blocks,
                due_against=_due_against(self._settings, network),
            ),
            await stack.enter_async_context(self._database()),
            self._nodes[network],
            self._seat.bell,
            self._pauses.pause(),
        )

    async def _span_reader(self, stack: AsyncExitStack, network: Network, scanner: Scanner) -> SpanReader:
        return SpanReader(
            Reading(network, self._seat.owner, self._settings.lease_seconds, self._settings.poll_interval_seconds),
            await stack.enter_async_context(self._database()),
            self._nodes[network].apart(),
            self._seat.bell,
            self._pauses.pause(),
            is_served=lambda: scanner.is_served,
        )

    async def _all_nodes(self, stack: AsyncExitStack, network: Network) -> Nodes:
        """The network's endpoints, one for each of its URLs."""
        chains = []
        for url in self._settings.rpc_urls[network.name]:
            endpoint = Endpoint(
                network.name,
                url,
                self._settings.rpc_timeout_seconds,
                on_call=_count_rpc_call,
                on_wait=pulse.waits,
            )
            chains.append(evm_chain(await stack.enter_async_context(endpoint), self._settings))
        return Nodes(
            chains,
            quorum=self._settings.quorum(network.name),
            proves=self._settings.proves_blocks(network.name),
        )

    def _duty(self) -> Duty:
        return Duty(
            worker_id=self._seat.worker_id,
            owner=self._seat.owner,
            batch_size=self._settings.batch_size,
            lease_seconds=self._settings.lease_seconds,
            poll_interval_seconds=self._settings.poll_interval_seconds,
            policies={network: policy(self._settings, network) for network in self._networks},
        )

    async def _give_back(self, database: Database) -> int:
        """Release what is still leased, the drain's last act; the exit code.

        If the database is away, or refuses one of the rows, the janitor is to try again: 69 tells the supervisor that
        something is left.
        """
        try:
            released = await leases.release(database, self._seat.owner)
        except (StoreUnavailable, StoreRejected) as error:
            self._log.warning(
                "leases_left", error=str(error), todo="nothing: the janitor or the leases' end frees them"
            )
            return EXIT_UNAVAILABLE
        metrics.LEASES_RELEASED.inc(released.requests + released.scans, "clean")
        self._seat.bell.ring()
        return EXIT_OK


def evm_chain(endpoint: Endpoint, settings: Settings) -> EvmChain:
    """The chain behind an endpoint, read as the operator wants it for its network."""
    return EvmChain(
        endpoint,
        proves=settings.proves_blocks(endpoint.network),
        native_logs_from=settings.native_logs_from.get(endpoint.network),
    )


def policy(settings: Settings, network: Network) -> Policy:
    """The operator's figures for one network, as decisions take them."""
    return Policy(
        confirmations=settings.confirmation_depth(network.name),
        finality_confirmations=settings.finality_depth(network.name),
        detected_threshold_bps=settings.detected_threshold_bps,
        confirmed_threshold_bps=settings.confirmed_threshold_bps,
        observe_window_seconds=settings.reorg_observe_window_seconds,
        expiry_confirmations=settings.expiry_confirmations,
        expiry_grace_seconds=settings.expiry_grace_seconds,
        audits_balances=settings.audits_balances(network.name),
    )


def _count_rpc_call(network: str, method: str, outcome: str, seconds: float, count: int) -> None:
    metrics.RPC_REQUESTS.inc(count, network, method, outcome)
    metrics.RPC_SECONDS.observe(seconds, network, method)
    pulse.alive()


def _due_against(settings: Settings, network: Network) -> Against:
    depth = settings.confirmation_depth(network.name)
    return "scanned" if isinstance(depth, int) else depth
