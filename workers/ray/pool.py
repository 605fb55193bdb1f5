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
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import BrokenModelError
from sqluice.workers.admission import admit
from sqluice.workers.checks import method_of, name_of
from sqluice.workers.pool import (
    LocalPool,
    Pool,
    Question,
    Rows,
    Work,
    calibration,
    micro_batches,
)
from sqluice.workers.ray import cluster
from sqluice.workers.ray.dispatch import Dispatch
from sqluice.workers.ray.group import Group
from sqluice.workers.ray.manager import manager_of
from sqluice.workers.ray.peers import Limits
from sqluice.workers.ray.ship import pickled
from sqluice.workers.ray.wire import Facts, to_table
from sqluice.workers.ray.worker import Descriptor
from sqluice.workers.registry import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqluice.types import ModelInfo
    from sqluice.workers.protocol import Asked, Control
    from sqluice.workers.registry import LoadOptions, Registry
    from sqluice.workers.where import Shape, Where

MANAGER_SECONDS = 10.0
"""In which the manager answers, after workers were lost."""

ROWS_A_CALL = 2048
"""Prompts whose tokens one call counts."""


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
        parts = [(to_table(items[at : at + ROWS_A_CALL]),) for at in range(0, len(items), ROWS_A_CALL)]
        return np.concatenate([np.zeros(0, np.int64), *self.group.call(self._check, name, parts)])

    def _told(self, name: str, table: Any, *rest: Any) -> Any:
        said = self.group.call(self._check, name, [(table, *rest)])[0]
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
        with self._lock, cluster.using():
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
        group.open(control.check)
        told = Rows.of(question, len(items))
        lengths = admit(view, question, items, told)
        bias = calibration(view, question, items)
        work = Work(name_of(model), control, told, lambda _: {}, lambda _: (), lengths, bias)
        batches = micro_batches(view, question, told, lengths)
        try:
            Dispatch(work, question, items, batches, group, self.limits).run()
        except BaseException as error:
            told.cut_short(error, bias)
            raise
        finally:
            group.demand(0.0)
        return told.asked(bias)

    def ready(self) -> int:
        """Wait until all workers that this pool asked for are up, beyond the first of each model; how many there
        are."""
        with cluster.using():
            return sum(model.group.ready() for model in list(self._models.values()))

    def close(self) -> None:
        """End all workers that this pool asked for."""
        with self._lock:
            models, self._models = list(self._models.values()), {}
            self._keys.clear()
            self._digests.clear()
        with cluster.using():
            for model in models if self._ray is not None and self._ray.is_initialized() else ():
                model.group.close()

    @contextlib.contextmanager
    def _using(self, group: Group) -> Iterator[None]:
        """Workers that are lost are not asked again; the next query has new ones placed."""
        try:
            with cluster.using():
                yield
        except BrokenModelError:
            with cluster.using():
                self._models = {key: model for key, model in self._models.items() if model.group is not group}
                self._doubted = True
                group.close()
            raise

    def _joined(self) -> bool:
        """Whether there is a Ray to ask; joined now if need be, or anew after the old one is gone."""
        if self._ray is not None and self._ray.is_initialized() and not self._is_gone():
            return True
        self._models.clear()
        self._ray = cluster.join(self.where)
        if self._ray is None:
            return False
        self._manager = manager_of(self._ray)
        return True

    def _is_gone(self) -> bool:
        """Whether the cluster, or what is left of it, has lost the manager; a Ray of this machine is ended then."""
        if cluster.is_gone():
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
        cluster.leave(only_own=True)
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
        try:
            return RayModel(group, group.open(lambda: None))
        except BaseException:
            group.close()
            raise


def _placed(found: Any, shape: Shape) -> Any:
    """A recipe for a worker: it uses the cores that it holds, and a GPU only where it holds one."""
    if not isinstance(found, Recipe):
        return found
    options = found.options
    device = "cpu" if options.device == "auto" and not shape.gpus else options.device
    return replace(found, options=replace(options, device=device, threads=options.threads or max(1, int(shape.cpus))))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
