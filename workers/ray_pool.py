"""Runs models on Ray workers.

What decides answers is the same as in process: this process admits rows, packs them into micro-batches and calibrates;
a worker runs each micro-batch through `pool.run`. Models behind an endpoint, and recorded ones, are asked from here: a
worker would only pass the question on.

Workers stay for the process, loaded, and are found again by their model and options by everybody in the same Ray job.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import BrokenModelError, ModelError
from sqluice.workers import ray_cluster
from sqluice.workers.checks import method_of, name_of
from sqluice.workers.pool import (
    LocalPool,
    Pool,
    Question,
    Rows,
    Work,
    admit,
    calibration,
    micro_batches,
)
from sqluice.workers.ray_dispatch import WAIT, Dispatch
from sqluice.workers.ray_manager import manager_of
from sqluice.workers.ray_peers import Limits, Peer
from sqluice.workers.ray_ship import pickled
from sqluice.workers.ray_wire import Broken, Facts, to_table, why
from sqluice.workers.ray_worker import Descriptor
from sqluice.workers.registry import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqluice.types import ModelInfo
    from sqluice.workers.protocol import Asked, Control
    from sqluice.workers.registry import LoadOptions, Registry
    from sqluice.workers.where import Shape, Where

REFRESH = 2.0
"""Seconds between looks at which workers a model has."""

MANAGER_SECONDS = 10.0
"""In which the manager answers, after workers were lost."""

ROWS_A_CALL = 2048
"""Prompts whose tokens one call counts."""


class Group:
    """The workers of one model."""

    def __init__(self, ray: Any, manager: Any, key: str, descriptor: Descriptor, shape: Shape, limits: Limits) -> None:
        self.ray = ray
        self.limits = limits
        self.name = descriptor.name
        self._manager = manager
        self._key = key
        self._descriptor = descriptor
        self._shape = shape
        self._me = uuid.uuid4().hex
        self._peers: list[Peer] = []
        self._gone: set[str] = set()
        self._listing: Any = None
        self._refreshed = 0.0
        self.seconds_load = 0.0

    def peers(self) -> list[Peer]:
        """The workers there are. `BrokenModelError` when the cluster is gone."""
        ray_cluster.check()
        if self._listing is not None and self.ray.wait([self._listing], timeout=0)[0]:
            listing, self._listing = self._listing, None
            if listing is not None:  # else another thread has it
                self._update(self._got(listing))
        return self._peers

    def open(self) -> None:
        """Have workers placed if there are none. `BrokenModelError` says what the cluster lacks."""
        if self._peers:
            return
        found = self._got(self._manager.open.remote(self._key, self._descriptor, self._shape))
        if isinstance(found, Broken):
            raise BrokenModelError(found.said)
        self._gone.clear()
        self._update(found)

    def lost(self, peer: Peer) -> None:
        """A worker is given up."""
        self._gone.add(peer.name)
        self._peers = [one for one in self._peers if one is not peer]
        self._manager.drop.remote(self._key, peer.name)

    def close(self) -> None:
        """End the workers, unless the cluster is gone and they with it."""
        self._peers = []
        with contextlib.suppress(BrokenModelError):
            ray_cluster.check()
            self._got(self._manager.close.remote(self._key))

    def demand(self, seconds: float) -> None:
        """Tell the manager how many seconds of work are queued here; from time to time, or when it is none."""
        if ray_cluster.is_gone():
            return
        now = time.monotonic()
        if seconds and now - self._refreshed < REFRESH:
            return
        self._refreshed = now
        self._listing = self._manager.demand.remote(self._key, self._me, seconds, self.seconds_load)

    def call(self, check: Callable[[], None], method: str, *args: Any) -> Any:
        """What one worker's own method says; asked elsewhere where a worker dies. `ModelError` when none can tell."""
        return self.calls(check, method, [args])[0]

    def calls(self, check: Callable[[], None], method: str, each: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The same for several calls at once, spread over the workers."""
        found: list[Any] = [None] * len(each)
        todo = list(range(len(each)))
        while todo:
            peers = self.peers()
            if not peers:
                raise BrokenModelError(f"model {self.name} has no worker left")
            out = [(at, peers[turn % len(peers)]) for turn, at in enumerate(todo)]
            flights = [
                (at, peer, peer.life, getattr(peer.actor, method).options(concurrency_group="work").remote(*each[at]))
                for at, peer in out
            ]
            todo = []
            for at, peer, life, ref in flights:
                said = self._waited(check, ref)
                if isinstance(said, Broken) and said.model:
                    raise ModelError(f"model {self.name} gives no {each[at][0]}: {said.said}")
                if isinstance(said, Broken):
                    if peer.died(life, said.said) and peer.deaths >= self.limits.deaths:
                        self.lost(peer)
                    if not self._peers:
                        raise BrokenModelError(said.said)
                    todo.append(at)
                else:
                    found[at] = said
        return found

    def _waited(self, check: Callable[[], None], ref: Any) -> Any:
        """The result of a call, or why there is none."""
        try:
            while not self.ray.wait([ref], timeout=WAIT)[0]:
                check()
                ray_cluster.check()
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            return Broken(why(error))

    def _got(self, ref: Any) -> Any:
        """What the manager says."""
        try:
            while not self.ray.wait([ref], timeout=WAIT)[0]:
                ray_cluster.check()
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            raise BrokenModelError(f"the Ray workers of {self.name} are gone: {why(error)}") from error

    def _update(self, listed: list[tuple[str, Any]]) -> None:
        known = {peer.name: peer for peer in self._peers}
        self._peers = [known.get(name) or Peer(name, actor) for name, actor in listed if name not in self._gone]


class RayModel:
    """A model that Ray workers hold, as the pool sees it: facts, and the methods that it has. They wait for a worker,
    and `check` may raise meanwhile."""

    def __init__(self, group: Group, facts: Facts, check: Callable[[], None] = lambda: None) -> None:
        self.group = group
        self.facts = facts
        self._check = check
        self.token_budget = facts.token_budget
        self.slots = facts.slots
        self.batch_rows = facts.batch_rows
        if "prefix_tokens" not in facts.offers:
            self.prefix_tokens = facts.prefix_tokens

    @property
    def info(self) -> ModelInfo:
        """Of the model."""
        return self.facts.info

    def watched(self, check: Callable[[], None]) -> RayModel:
        """The same model, for one query."""
        return RayModel(self.group, self.facts, check)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.facts.offers:
            raise AttributeError(name)
        if name in ("lengths", "count_tokens"):
            return lambda items: self._by_parts(name, items)
        one = name in ("calibration", "prefix_tokens")
        return lambda items, *rest: self._told(name, to_table([items] if one else items), *rest)

    def _by_parts(self, name: str, items: Sequence[Any]) -> Any:
        parts = [(name, to_table(items[at : at + ROWS_A_CALL])) for at in range(0, len(items), ROWS_A_CALL)]
        return np.concatenate([np.zeros(0, np.int64), *self.group.calls(self._check, "call", parts)])

    def _told(self, name: str, table: Any, *rest: Any) -> Any:
        said = self.group.call(self._check, "call", name, table, *rest)
        return said.item() if isinstance(said, np.ndarray) and said.ndim == 0 else said


class RayPool(Pool):
    """A pool of Ray workers; Ray starts with the first model."""

    def __init__(self, where: Where, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self.where = where
        self.limits = limits
        self._local = LocalPool()
        self._ray: Any = None
        self._manager: Any = None
        self._models: dict[str, RayModel] = {}
        self._keys: dict[int, tuple[object, str, bytes]] = {}
        self._digests: dict[str, str] = {}
        self._doubted = False
        self._lock = threading.Lock()

    def model(
        self,
        registry: Registry,
        uri: str,
        options: LoadOptions,
        *,
        role: str,
        progress: Callable[..., None] | None = None,
    ) -> Any:
        """The model on its workers, which are placed and load it now if they have not yet."""
        found = registry.find(uri, options)
        if isinstance(found, Recipe) and found.place.kind in ("http", "replay"):
            return found.load(progress)
        with self._lock, ray_cluster.using():
            if not self._joined():
                return registry.load(uri, options, progress)
            shape = self._shape(role)
            key, data = self._key(uri, _placed(found, shape), shape)
            model = self._models.get(key)
            if model is None or not model.group.peers():
                model = self._opened(key, Descriptor(uri, data), shape)
                self._models[key] = model
            return model

    def ask(self, model: Any, question: Question, items: Sequence[Any], control: Control) -> Asked:
        """Micro-batches go to the workers; order, errors and calibration are as in process."""
        if not isinstance(model, RayModel):
            return self._local.ask(model, question, items, control)
        with self._using(model.group):
            return self._ask(model, question, items, control)

    def _ask(self, model: RayModel, question: Question, items: Sequence[Any], control: Control) -> Asked:
        group, view = model.group, model.watched(control.check)
        method_of(view, question.operation)
        told = Rows.of(question, len(items))
        lengths = admit(view, question, items, told)
        bias = calibration(view, question, items)
        work = Work(name_of(model), control, told, lambda _: {}, lambda _: (), lengths, bias)
        batches = micro_batches(view, question, told, lengths)
        try:
            group.open()
            Dispatch(work, question, items, batches, group, self.limits).run()
        except BaseException as error:
            told.cut_short(error, bias)
            raise
        finally:
            group.demand(0.0)
        return told.asked(bias)

    def close(self) -> None:
        """End all workers that this pool asked for."""
        with self._lock:
            models, self._models = list(self._models.values()), {}
            self._keys.clear()
            self._digests.clear()
        with ray_cluster.using():
            for model in models if self._ray is not None and self._ray.is_initialized() else ():
                model.group.close()

    @contextlib.contextmanager
    def _using(self, group: Group) -> Iterator[None]:
        """Workers that are lost are not asked again; the next query has new ones placed."""
        try:
            with ray_cluster.using():
                yield
        except BrokenModelError:
            with ray_cluster.using():
                self._models = {key: model for key, model in self._models.items() if model.group is not group}
                self._doubted = True
                group.close()
            raise

    def _joined(self) -> bool:
        """Whether there is a Ray to ask; joined now if need be, or anew after the old one is gone."""
        if self._ray is not None and self._ray.is_initialized() and not self._is_gone():
            return True
        self._models.clear()
        self._ray = ray_cluster.join(self.where)
        if self._ray is None:
            return False
        self._manager = manager_of(self._ray)
        return True

    def _is_gone(self) -> bool:
        """Whether the cluster, or what is left of it, has lost the manager; a Ray of this machine is ended then."""
        if ray_cluster.is_gone():
            return True
        if not self._doubted:
            return False
        self._doubted = False
        answer = self._manager.workers.remote("")
        try:
            if self._ray.wait([answer], timeout=MANAGER_SECONDS)[0]:
                self._ray.get(answer)
                return False
        except self._ray.exceptions.RayError:
            pass
        ray_cluster.leave(only_own=True)
        return True

    def _shape(self, role: str) -> Shape:
        shape = self.where.shape(role)
        here = self.where.kind == "ray" and not self.where.address
        return replace(shape, workers=os.cpu_count() or 1) if here and not shape.workers else shape

    def _key(self, uri: str, found: Any, shape: Shape) -> tuple[str, bytes]:
        """What a model's workers are found again by, and the model for the wire.

        A registered object is known by its name, class and revision, as it is to the answer cache; where another one of
        this process shares all three, or there is no revision, by what it pickles to.
        """
        if isinstance(found, Recipe):
            return _digest(repr((found, shape)).encode()), pickled(uri, found)
        known = self._keys.get(id(found))
        if known is None or known[0] is not found:
            data = pickled(uri, found)
            known = self._keys[id(found)] = (found, self._name(uri, found, _digest(data)), data)
        return f"{known[1]} {shape}", known[2]

    def _name(self, uri: str, found: Any, digest: str) -> str:
        info = getattr(found, "info", None)
        if not getattr(info, "revision", ""):
            return digest
        name = _digest(repr((uri, type(getattr(found, "_model", found)).__qualname__, info)).encode())
        return name if self._digests.setdefault(name, digest) == digest else f"{name} {digest}"

    def _opened(self, key: str, descriptor: Descriptor, shape: Shape) -> RayModel:
        group = Group(self._ray, self._manager, key, descriptor, shape, self.limits)
        group.open()
        for peer in group.peers():
            peer.actor.facts.options(concurrency_group="work").remote()  # all of them load at the same time
        try:
            facts = group.call(lambda: None, "facts")
        except BaseException:
            group.close()
            raise
        group.seconds_load = facts.seconds_load
        return RayModel(group, facts)


def _placed(found: Any, shape: Shape) -> Any:
    """A recipe for a worker: it uses the cores that it holds, and a GPU only where it holds one."""
    if not isinstance(found, Recipe):
        return found
    options = found.options
    device = "cpu" if options.device == "auto" and not shape.gpus else options.device
    return replace(found, options=replace(options, device=device, threads=options.threads or max(1, int(shape.cpus))))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
