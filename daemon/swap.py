"""Bundles that are served, and the change from one to the next while streams go on.

A stream keeps the bundle that it began with: `session.created` told its client which classes that knows, what a channel
sounded like so far is in the numbers of its features, and a call whose first half another model scored has no trend. So a
change is for new streams. The bundle before goes on until the last of its streams has ended, and is freed then; until that
no third one is loaded, because memory is planned for two.

    loading ──> serving ──> retiring ──> gone
        └──> refused    <──────┘ asked for again: it is there already
"""

import asyncio
import logging
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from daemon import memory
from daemon.batcher import BatchCounts
from daemon.engine import Engine, EngineSettings, Listener, Models, load_models, running_engine
from daemon.errors import CapacityError, ConfigError, DaemonError
from daemon.messages import CallInfo, Scores, Utterance
from model.adaptation import NO_HISTORY, History
from model.bundle import Bundle, BundleError, read_bundle
from model.signature import KeyFormatError, require_signature

_log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class Swapped:
    """What became of a change.

    Attributes:
        model: id of the bundle that new streams get.
        before: id of the one that they got before; the same where it was served already.
        retiring: streams that still use the one before.
    """

    model: str
    before: str
    retiring: int


@dataclass(eq=False, slots=True)
class _Served:
    """A bundle whose models are loaded; `held` frees them."""

    engine: Engine
    held: AsyncExitStack
    streams: int = 0


class Bundles:
    """A `Scorer` over the engines of all bundles that are served: each stream is scored by the one that it was told of.

    Args:
        folder: of the bundle that the configuration names; it may be a link, which is followed anew at each change.
        settings: of every engine.
        check: raises ConfigError for a bundle that this configuration cannot do with.

    Attributes:
        changed: called when new streams get another bundle: with its models, the id of the one before, and who asked.
        swaps: how many changes were made, and how many bundles refused.
    """

    def __init__(
        self,
        folder: Path,
        settings: EngineSettings,
        check: Callable[[Bundle], None] = lambda bundle: None,
    ) -> None:
        self.changed: Callable[[Models, str, str], None] = lambda models, before, who: None
        self._listener: Listener | None = None
        self.swaps = {"done": 0, "refused": 0}
        self._folder = folder
        self._settings = settings
        self._check = check
        self._served: dict[str, _Served] = {}
        """By bundle id; two at most."""
        self._current = ""
        self._loading = False
        self._closed = False
        self._freeing: set[asyncio.Task[None]] = set()
        self._counts: dict[str, list[BatchCounts]] = {"asr": [], "emotion": []}
        """Of every engine there was: what is counted does not go back when one goes."""

    @property
    def engine(self) -> Engine:
        """Of the bundle that new streams get."""
        return self._served[self._current].engine

    @property
    def engines(self) -> Iterator[Engine]:
        """Of every bundle that is served."""
        return (served.engine for served in self._served.values())

    @property
    def loading(self) -> bool:
        """Whether a bundle is being loaded at this moment."""
        return self._loading

    def counted(self, model: str) -> tuple[int, int]:
        """Batches and items of a model, "asr" or "emotion", of all bundles so far."""
        counts = self._counts[model]
        return sum(one.batches for one in counts), sum(one.items for one in counts)

    def streams(self) -> dict[str, int]:
        """Open streams of each bundle that is served, by its id."""
        return {name: served.streams for name, served in self._served.items()}

    def has_room(self) -> bool:
        """Whether nothing is to be scored, and there is room for work that nobody waits for."""
        return all(engine.has_room for engine in self.engines)

    def listen(self, listener: Listener) -> None:
        """Has `listener` hear what every engine's Whisper makes of final utterances."""
        self._listener = listener
        for engine in self.engines:
            engine.listener = listener

    def stuck(self) -> str | None:
        """Which model has been at one batch for longer than any takes; None if none has."""
        return next((problem for engine in self.engines if (problem := engine.stuck()) is not None), None)

    @property
    def wait_s(self) -> float:
        """How long finals waited lately for the models: the bundles share the machine."""
        return max(engine.wait_s for engine in self.engines)

    def accept(self, info: CallInfo, utterance: Utterance) -> None:
        """What its bundle scores of it ahead is wanted now; else nothing: the call holds it until it asks for its scores."""
        if (served := self._served.get(info.model)) is not None:  # retired, if scoring failed before
            served.engine.accept(info, utterance)

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        """Scores one utterance with the bundle of its stream; see `daemon.interfaces.Scorer`."""
        return await self._served[info.model].engine.score(info, utterance, history, ahead_s=ahead_s)

    def hold(self, model: str, scoring: "asyncio.Task[None]") -> None:
        """Keeps a bundle until what a stream of it scores is done.

        Args:
            model: id of the bundle that the stream was told of.
            scoring: done once the stream asks for nothing more.
        """
        served = self._served[model]
        served.streams += 1

        def let_go(_: "asyncio.Task[None]") -> None:
            served.streams -= 1
            self._retire(served)

        scoring.add_done_callback(let_go)

    async def swap(self, name: str | None = None, *, who: str = "") -> Swapped:
        """Gives new streams another bundle.

        Args:
            name: of a folder beside the configured one; None for the configured one, as it is by now.
            who: asks for it.

        Raises:
            CapacityError: if another change is under way; nothing was changed.
            ConfigError: if the bundle is refused, for the reason that is said; nothing was changed.
        """
        folder = self._folder if name is None else self._folder.parent / _name(name)
        if self._loading:
            raise CapacityError("another bundle is being loaded: come back when that is done")
        self._loading = True
        try:
            return await self._swap(folder, who)
        except ConfigError as error:
            self.swaps["refused"] += 1
            _log.error("the bundle in %s is refused, %s goes on: %s", folder, self._current, error)
            raise
        except DaemonError:
            raise
        except Exception as error:  # the boundary: models have no base class for what they cannot load
            self.swaps["refused"] += 1
            _log.exception("the bundle in %s cannot be loaded, %s goes on", folder, self._current)
            raise ConfigError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
        finally:
            self._loading = False

    async def _swap(self, folder: Path, who: str) -> Swapped:
        before = self._current
        bundle = await asyncio.to_thread(self._read, folder)
        if bundle.id not in self._served:
            if others := {name: count for name, count in self.streams().items() if name != before}:
                ((name, count),) = others.items()
                raise CapacityError(f"{count} streams still use {name}, the bundle before: come back when they ended")
            await self._add(bundle)
        self._current = bundle.id
        if bundle.id != before:
            self.swaps["done"] += 1
            self.changed(self.engine.models, before, who)
            _log.info("new streams get %s, before it was %s", bundle.id, before)
            self._retire(self._served[before])
        return Swapped(bundle.id, before, self.streams().get(before, 0) if bundle.id != before else 0)

    def _read(self, folder: Path) -> Bundle:
        """The bundle in a folder, all that can be checked of it without its models."""
        try:
            real = folder.resolve(strict=True)
            require_signature(real, self._settings.trusted_keys)
            bundle = read_bundle(real)
        except (OSError, BundleError, KeyFormatError) as error:
            raise ConfigError(str(error)) from error
        self._check(bundle)
        return bundle

    async def _add(self, bundle: Bundle) -> None:
        models = await asyncio.to_thread(load_models, bundle.path, self._settings)
        if models.bundle.id != bundle.id:
            raise ConfigError(
                f"{bundle.path} changed while it was read, from {bundle.id} to {models.bundle.id}: ask again"
            )
        if self._closed:
            raise CapacityError("the server is shutting down")
        held = AsyncExitStack()
        engine = await held.enter_async_context(running_engine(models, self._settings))
        engine.listener = self._listener
        self._served[engine.bundle_id] = _Served(engine, held)
        for batcher in (engine.asr, engine.emotion):
            self._counts[batcher.name].append(batcher.counts)

    def _retire(self, served: _Served) -> None:
        """Frees a bundle that neither new streams nor open ones use."""
        model = served.engine.bundle_id
        if self._closed or model == self._current or served.streams:
            return
        if self._served.pop(model, None) is not None:
            freeing = asyncio.create_task(_free(served.held), name="free")
            self._freeing.add(freeing)
            freeing.add_done_callback(self._freeing.discard)
            _log.info("no stream uses %s any more: its memory is freed", model)

    async def start(self) -> None:
        """Loads the bundle that the configuration names.

        Raises:
            ConfigError: if it is refused.
        """
        bundle = await asyncio.to_thread(self._read, self._folder)
        await self._add(bundle)
        self._current = bundle.id

    async def close(self) -> None:
        """Stops every engine; who still waits for scores gets an UpstreamError."""
        self._closed = True
        for served in list(self._served.values()):
            await served.held.aclose()
        await asyncio.gather(*self._freeing)

    def collect(self) -> Iterator[Any]:
        """Streams per bundle, for Prometheus."""
        streams = GaugeMetricFamily("medusa_bundle_streams", "Open streams of each bundle in memory", labels=["model"])
        for model, count in self.streams().items():
            streams.add_metric([model], count)
        yield streams
        swaps = CounterMetricFamily(
            "medusa_bundle_swaps", "Changes of the bundle that were asked for", labels=["outcome"]
        )
        for outcome, count in self.swaps.items():
            swaps.add_metric([outcome], count)
        yield swaps


async def _free(held: AsyncExitStack) -> None:
    await held.aclose()
    await asyncio.to_thread(memory.collect)


def _name(name: str) -> str:
    """A name as a folder beside ours may have one: who may change the bundle may not look around on the machine."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r:.80} is no name of a bundle: it is that of a folder beside the configured one, 1 to 128 letters, "
            "digits and any of _.-, without a path"
        )
    return name


@contextmanager
def reloaded_by_sighup(bundles: Bundles | None) -> Iterator[None]:
    """While the block lasts, SIGHUP asks for the configured bundle anew; a gateway, which has none, goes on."""
    loop = asyncio.get_running_loop()
    asked: set[asyncio.Task[None]] = set()

    async def swap() -> None:
        if bundles is None:
            _log.warning("SIGHUP: a gateway has no models to load")
            return
        try:
            await bundles.swap(who="SIGHUP")
        except ConfigError:
            pass  # it was logged where it was refused
        except DaemonError as error:
            _log.warning("SIGHUP: %s", error)

    def hung_up() -> None:
        task = asyncio.create_task(swap(), name="SIGHUP")
        asked.add(task)
        task.add_done_callback(asked.discard)

    loop.add_signal_handler(signal.SIGHUP, hung_up)
    try:
        yield
    finally:
        with suppress(RuntimeError):
            loop.remove_signal_handler(signal.SIGHUP)
        for task in asked:
            task.cancel()
