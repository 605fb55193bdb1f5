"""Questions with the option `merge` about the same arguments, asked in one pass of their model (`workers/together.py`).

When one of them is asked, those that stand beside it in the stage are asked with it, and find their answers there when
their turn comes. In WHERE that may be more than is needed, so it is done where the text is long enough to be worth it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.engine.operators.ask import CHARS_PER_TOKEN
from sqluice.engine.operators.cascade import may_pay
from sqluice.optimizer import guards
from sqluice.optimizer.ast import args_of, has_site, own_sites, spec_of, sql
from sqluice.types import Prompt
from sqluice.workers.together import Question, Together, joinable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa
    from sqlglot import exp

    from sqluice.engine.execution import Executor
    from sqluice.engine.operators.ask import Asker
    from sqluice.engine.run import Run
    from sqluice.optimizer.plan import Ask, Plan, Stage
    from sqluice.udfs.spec import Spec
    from sqluice.workers.protocol import Asked, Batch

MERGE = ("merge", True)


@dataclass(slots=True)
class _Watching:
    """How one pass for several askers is watched: `stop` is the first one's, answers go to the cache of each."""

    askers: Sequence[Asker]
    keys: Sequence[Sequence[bytes]]
    together: Together

    def check(self) -> None:
        self.askers[0].watch.check()

    def done(self, batch: Batch) -> None:
        self.askers[0].watch.meter.end(batch)
        for asker in self.askers:
            asker.watch.count(batch)

    def answered(self, rows: list[int], values: np.ndarray, raw: np.ndarray) -> None:
        """What each micro-batch says goes into the cache at once."""
        start = 0
        for asker, keys, one in zip(self.askers, self.keys, self.together.questions, strict=True):
            here = slice(start, start + len(one.choices))
            start = here.stop
            asker.keep([keys[row] for row in rows], values[:, here], raw[:, here])


def written_together(stage: Stage, ask: Ask, spec: Callable[[int], Spec]) -> list[int]:
    """The other questions of a stage that are wanted wherever `ask` may be, about the same arguments, all with the
    option `merge`."""
    if MERGE not in spec(ask.spec).options or not ask.args or ask.guard is not None:
        return []
    mine = [sql(arg) for arg in ask.args]
    found = [number for number, args in _unguarded(stage) if [sql(arg) for arg in args] == mine]
    return [number for number in dict.fromkeys(found) if number != ask.spec and MERGE in spec(number).options]


def _unguarded(stage: Stage) -> Iterator[tuple[int, tuple[exp.Expr, ...]]]:
    """Questions of a stage that have no condition of their own, with their arguments."""
    for need in guards.collect(list(stage.filters)).values():
        if need.guard() is None:
            yield spec_of(need.site), tuple(args_of(need.site))
    for ask in stage.asks:
        if ask.guard is None:
            yield ask.spec, ask.args


def beside(
    executor: Executor,
    run: Run,
    plan: Plan,
    stage: Stage,
    ask: Ask,
    inputs: str,
    ids: pa.ChunkedArray,
    texts: Sequence[Sequence[str]],
) -> list[int]:
    """Ask about numbered inputs what stands beside `ask` in one pass with it; the questions that were. Not those of
    which some answers are there, or that may be a cascade."""
    if run.policy(ask.spec) is not None:
        return []
    first, last = ids[0].as_py(), ids[-1].as_py()
    found = []
    for number in partners(run, stage, ask, texts):
        cascade = plan.cascades.get(number)
        saves = cascade is not None and may_pay(cascade, executor.count(inputs), run.measured(number))
        known = f'"{inputs}" AS i JOIN "{executor.answers(number)}" AS a USING (k) WHERE id BETWEEN {first} AND {last}'
        if not saves and run.policy(number) is None and not executor.row(f"SELECT count(*) FROM {known}")[0]:
            found.append(number)
    askers = [run.asker(number) for number in (ask.spec, *found)]
    return found if found and ask_together(askers, texts, run.runner.pool) else []


def partners(run: Run, stage: Stage, ask: Ask, texts: Sequence[Sequence[str]]) -> list[int]:
    """Those of the questions written together that one pass about `texts` may answer too, and that are worth it."""
    others = written_together(stage, ask, run.specs.__getitem__)
    if not others or ask.spec in run.both_ways or any(map(has_site, ask.args)):
        return []
    if stage.filters and run.settings["ai_on_error"] == "raise":
        return []  # a question that is not needed must not stop the statement
    asker = run.asker(ask.spec)
    if not joinable(asker.model):
        return []
    sample = tuple(column[0] for column in texts)
    mine = _question(asker.spec, sample)
    beginning = asker.model.beginning(mine)
    chars = np.mean([sum(map(len, row)) for row in zip(*texts, strict=True)])
    share = _share_left(run, stage, ask.spec)
    found = []
    for number in others:
        other = run.asker(number)
        same = other.model is asker.model and asker.room() is None and other.room() is None
        if number in run.both_ways or not same or other.spec.operation != "score":
            continue
        question = _question(other.spec, sample)
        tokens = asker.model.question_tokens(question)
        later = share * (chars / CHARS_PER_TOKEN + tokens)
        if beginning is not None and asker.model.beginning(question) == beginning and later > tokens:
            found.append(number)
    return found


def _question(spec: Spec, sample: tuple[str, ...]) -> Question:
    return Question(Prompt(spec.template, sample, "", spec.kind), spec.choices)


def _share_left(run: Run, stage: Stage, number: int) -> float:
    """The share of a question's rows that the others are asked about after it."""
    decides = any(spec_of(site) == number for predicate in stage.filters for site in own_sites(predicate))
    return run.yes_shares.get(number, 0.5) if decides else 1.0


def ask_together(askers: Sequence[Asker], texts: Sequence[Sequence[str]], pool: Any) -> bool:
    """Ask about distinct inputs in one pass; each asker keeps what it is told until it is asked. Whether it was done:
    not where the cache knows some of the answers, and not the same ones of each question."""
    rows: list[tuple[str, ...]] = list(zip(*texts, strict=True))
    missing = [asker.missing(rows) for asker in askers]
    positions = missing[0][0]
    if not positions or any(found != positions for found, _ in missing):
        return False
    sample = rows[positions[0]]
    together = Together(askers[0].model, [_question(asker.spec, sample) for asker in askers])
    first = askers[0].spec
    prompts = [Prompt(first.template, rows[at], "", first.kind) for at in positions]
    watching = _Watching(askers, [keys for _, keys in missing], together)
    asked: Asked = pool.score(together, prompts, together.choices, watching)
    for asker, told in zip(askers, together.apart(asked), strict=True):
        asker.told = (positions, _mended(asker, told, [rows[at] for at in positions]))
    return True


def _mended(asker: Asker, told: Asked, rows: Sequence[tuple[str, ...]]) -> Asked:
    """`told` with inputs that failed beside other questions asked alone: a text may fit with one question only."""
    failed = sorted(told.errors)
    if failed:
        again = asker.operate([rows[at] for at in failed])
        for part in ("values", "raw", "tokens_in", "tokens_out"):
            getattr(told, part)[failed] = getattr(again, part)
        told.errors = {failed[at]: said for at, said in again.errors.items()}
        told.batches += again.batches
    return told
