"""Asks one question about many inputs: cache, model, decoding, and what the trace and the report need of it.

Both ways of running a statement end here: stages bring windows of distinct inputs, the row-wise functions bring what
DuckDB hands them.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.engine import answer_cache
from sqluice.engine.budget import SPENT, SpentError
from sqluice.errors import DataError, OperationalError
from sqluice.types import Prompt
from sqluice.udfs.answers import CUT, answer_text, decode
from sqluice.workers.pool import NOT_ASKED
from sqluice.workers.protocol import RETRY, WASTED, Asked
from sqluice.workers.replay import prompt_digest, template_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from sqluice.config import Value
    from sqluice.engine.budget import Budget
    from sqluice.engine.operators.watch import Watch
    from sqluice.engine.trace import OpTrace
    from sqluice.types import ModelInfo
    from sqluice.udfs.spec import Spec
    from sqluice.workers.protocol import Batch

ORACLE, CACHE, RULE, PROXY, HEAD = 0, 1, 2, 3, 4
TIERS = ("oracle", "cache", "rule", "proxy", "head")

USD_PER_SECOND = 0.5 / 3600
"""What a second of this machine is worth beside a model's price: that of a small server by the hour."""

_NAN = "model returned NaN"
CHARS_PER_TOKEN = 4
KEPT_SAMPLES = 64
FIRST_SLICE = 16
"""Calls under a budget of which the cost of one is not known."""
MOST_LOOKED_AT = 1000
_GUESSED_TOKENS = 1000
"""Of a call that has not been measured."""


@dataclass(slots=True)
class Answers:
    """Answers to n inputs, in their order. `tiers` are numbers in `TIERS`; `errors` are keyed by position; `first` is
    the place of the first input among the operator's decisions."""

    values: pa.Array
    scores: np.ndarray
    raw: np.ndarray
    tiers: np.ndarray
    hashes: list[bytes]
    tokens_in: np.ndarray
    tokens_out: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    first: int = 0

    def taken(self, rows: list[int]) -> Answers:
        """Those of some inputs."""
        values = self.values.take(rows)
        hashes = [self.hashes[at] for at in rows]
        errors = {to: self.errors[at] for to, at in enumerate(rows) if at in self.errors}
        scores, raw, tiers, tokens_in, tokens_out = (
            part[rows] for part in (self.scores, self.raw, self.tiers, self.tokens_in, self.tokens_out)
        )
        return Answers(values, scores, raw, tiers, hashes, tokens_in, tokens_out, errors)


@dataclass(frozen=True, slots=True)
class Routing:
    """Why a cheaper tier decides: a number in `TIERS`, a reason, and the thresholds, NaN where there is none."""

    tier: int
    reason: str
    tau_low: float
    tau_high: float


class Asker:
    """One question: a spec, the model that answers it, and the counters of its operator."""

    def __init__(
        self,
        spec: Spec,
        model: Any,
        pool: Any,
        cache: answer_cache.AnswerCache,
        op: OpTrace,
        watch: Watch,
        settings: dict[str, Value],
        budgets: Sequence[Budget] = (),
    ) -> None:
        self.spec = spec
        self.model = model
        self.op = op
        self.watch = watch
        self._pool = pool
        self._raises = settings["ai_on_error"] == "raise"
        self._state = template_state(spec.template)
        revision = str(getattr(model.info, "revision", ""))
        identity = replace(spec, model=None, errors=False, options=())
        self._scope = answer_cache.scope(revision, repr(identity))
        self._cache = cache if revision and spec.operation != "count_tokens" else answer_cache.NoCache()
        self.dimension: int | None = None
        self.warned: list[str] = []
        self.calls = 0
        self.told: tuple[list[int], Asked] | None = None
        """What the model has said already about some positions of the next inputs (`merging`)."""
        self.samples: deque[Batch] = deque(maxlen=KEPT_SAMPLES)
        """Micro-batches that tell later runs what an answer takes."""
        self._budgets = budgets
        self._usual_tokens = 0.0
        """Of an input, for models that do not count."""

    def answer(self, columns: Sequence[Sequence[str]], n_rows: np.ndarray, reason: str = "exact") -> Answers:
        """Answers to n distinct inputs without NULLs, one column an argument (none for a constant question); they are
        decided for int64 [n] rows each. `reason` is why the oracle was asked.

        `OperationalError` for the first row that fails under `ai_on_error = 'raise'`; what is answered by then is in
        the cache and in the trace, as it is after an interruption.
        """
        rows: list[tuple[str, ...]] = list(zip(*columns, strict=True)) if columns else [()] * len(n_rows)
        if not self._budgets:
            return self._answer(rows, n_rows, reason)
        parts, start = [], 0
        while start < len(rows):
            end = self._affordable(rows, start)
            spent, end = end == start, len(rows) if end == start else end
            parts.append(self._answer(rows[start:end], n_rows[start:end], reason, spent=spent))
            start = end
        return joined(parts) if parts else self._answer(rows, n_rows, reason)

    def charge(self, batches: Sequence[Batch], usd: float) -> None:
        """Count what the same model was asked beside this question against its budgets."""
        for budget in self._budgets:
            budget.charge(batches, usd)

    def room(self) -> int | None:
        """Calls that the budgets leave; None without a budget."""
        if not self._budgets:
            return None
        calls, op = max(self.calls, 1), self.op
        usd = op.cost_usd / calls if self.calls else self.model.info.price_in * _GUESSED_TOKENS / 1e6
        joules = (op.joules or 0.0) / calls if self.calls else self.watch.meter.usual()
        return min(budget.room(usd, op.seconds_busy / calls, joules) for budget in self._budgets)

    def _affordable(self, rows: list[tuple[str, ...]], start: int) -> int:
        """Up to which row the next slice goes; `start` when nothing can be asked any more."""
        missing = start + np.flatnonzero(~self.is_cached(list(zip(*rows[start:], strict=True))))
        room = self.room() or 0
        if not self.calls:
            room = min(room, 2 * FIRST_SLICE)  # nobody knows yet what one takes
        if len(missing) <= room // 2 or not len(missing):
            return len(rows)
        return int(missing[min(max(room // 2, 1), len(missing)) - 1]) + 1 if room else start

    def _answer(self, rows: list[tuple[str, ...]], n_rows: np.ndarray, reason: str, *, spent: bool = False) -> Answers:
        """Answers to some inputs; where the budget is `spent`, only what the cache knows."""
        digests = [prompt_digest(self._state, row) for row in rows]
        if self.spec.operation == "count_tokens":
            answers = self._counted(rows, digests)
            self._decide(answers, n_rows, rows)
            return answers
        keys = answer_cache.keys(self._scope, digests)
        blobs = self._cache.get(keys)
        positions, told = self.told or ([], None)
        self.told = None
        for at in positions:
            blobs[at] = None  # the cache has heard of it by now
        missing = [at for at, blob in enumerate(blobs) if blob is None]
        self._saw_cached(len(rows) - len(missing))
        try:
            if told is not None and missing == positions:
                asked = told
                self._charge(told)
            else:
                asked = self._nothing(len(missing)) if spent else self._ask(rows, missing, keys)
        except BaseException as error:
            self._keep_part(error, blobs, missing, digests, n_rows, rows)
            raise
        answers = self._merged(blobs, missing, asked, digests)
        self._decide(answers, n_rows, rows, reason)
        if answers.errors:
            self._failed(answers.errors)
        return answers

    def decide(
        self, columns: Sequence[Sequence[str]], n_rows: np.ndarray, values: pa.Array, scores: np.ndarray, by: Routing
    ) -> Answers:
        """Answers that a cheaper tier gave to n distinct inputs."""
        rows: list[tuple[str, ...]] = list(zip(*columns, strict=True)) if columns else [()] * len(n_rows)
        n, zeros = len(rows), np.zeros(len(rows), np.int32)
        digests = [prompt_digest(self._state, row) for row in rows]
        tiers = np.full(n, by.tier, np.uint8)
        answers = Answers(values, scores, np.full(n, np.nan), tiers, digests, zeros, zeros)
        self._decide(answers, n_rows, rows, by.reason, (by.tau_low, by.tau_high))
        self.watch.done_rows += n
        self.watch.tell()
        return answers

    def is_cached(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Bool [n]: to which inputs the cache has the answer."""
        digests = [prompt_digest(self._state, row) for row in zip(*columns, strict=True)]
        return np.array([blob is not None for blob in self._cache.get(answer_cache.keys(self._scope, digests))], bool)

    def missing(self, rows: list[tuple[str, ...]]) -> tuple[list[int], list[bytes]]:
        """Positions of the inputs that the cache does not know, and their keys."""
        keys = answer_cache.keys(self._scope, [prompt_digest(self._state, row) for row in rows])
        found = [at for at, blob in enumerate(self._cache.get(keys)) if blob is None]
        return found, [keys[at] for at in found]

    def _decide(
        self,
        answers: Answers,
        n_rows: np.ndarray,
        rows: list[tuple[str, ...]],
        reason: str = "exact",
        thresholds: tuple[float, float] | None = None,
    ) -> None:
        """Put decisions into the trace."""
        text = self.op.run.mode == "text"
        answers.first = self.op.add_decisions(
            answers.hashes,
            n_rows,
            tier=tier_names(answers.tiers),
            reason=reason,
            thresholds=thresholds,
            scores=answers.scores,
            raw_scores=answers.raw,
            answers=answer_text(answers.values) if self.op.run.records else None,
            status=_states(answers.errors, len(rows)),
            errors=answers.errors,
            tokens_in=answers.tokens_in,
            tokens_out=answers.tokens_out,
            texts=["\n".join(row) for row in rows] if text else None,
        )

    def _keep_part(
        self,
        error: BaseException,
        blobs: list[bytes | None],
        missing: list[int],
        digests: list[bytes],
        n_rows: np.ndarray,
        rows: list[tuple[str, ...]],
    ) -> None:
        """What an exception cut short: the inputs that have an answer, or an error of their own, are decided."""
        part = getattr(error, "asked", None)
        if not isinstance(part, Asked):
            return
        self._charge(part)
        left_out = {missing[at] for at, said in part.errors.items() if said == NOT_ASKED}
        there = [at for at in range(len(rows)) if at not in left_out]
        if there:
            answers = self._merged(blobs, missing, part, digests).taken(there)
            self._decide(answers, n_rows[there], [rows[at] for at in there])

    def _saw_cached(self, hits: int) -> None:
        self.watch.cached += hits
        self.watch.done_rows += hits
        if hits:
            self.watch.tell()

    def _ask(self, rows: list[tuple[str, ...]], missing: list[int], keys: list[bytes]) -> Asked:
        """What the model says about the rows in `missing`; each micro-batch goes into the cache as it comes."""
        if not isinstance(self._cache, answer_cache.NoCache):
            self.watch.keep = lambda at, values, raw: self.keep([keys[missing[row]] for row in at], values, raw)
        if missing:
            self._usual_tokens = guessed_tokens(
                [Prompt(self.spec.template, rows[at]) for at in missing[:MOST_LOOKED_AT]]
            )
        room = self.room()
        self.watch.limit = None if room is None or len(missing) == 0 else max(room // 2, 1)
        try:
            asked = self.operate([rows[at] for at in missing])
        except SpentError as error:
            asked = vars(error)["asked"]
            asked.errors.update({at: SPENT for at, said in asked.errors.items() if said == NOT_ASKED})
        finally:
            self.watch.keep = self.watch.limit = None
        self._charge(asked)
        return asked

    def _charge(self, asked: Asked) -> None:
        """Count what asking cost."""
        self.calls += len(asked.tokens_in) - sum(said in (NOT_ASKED, SPENT) for said in asked.errors.values())
        self.samples.extend(batch for batch in asked.batches if batch.outcome == "ok" and batch.tokens_in)
        usd = cost(self.model.info, asked.batches, 0.0 if asked.tokens_in.any() else self._usual_tokens)
        self.op.add_batches(asked.batches)
        self.op.cost_usd += usd
        self.charge(asked.batches, usd)

    def _nothing(self, n: int) -> Asked:
        """Rows that are not asked about."""
        spec, zeros = self.spec, np.zeros(n, np.int32)
        width = len(spec.choices) if spec.operation == "score" else self.dimension or 0
        values: Any = [None] * n if spec.operation == "generate" else np.full((n, width), np.nan, np.float32)
        return Asked(values, values, zeros, zeros, dict.fromkeys(range(n), SPENT))

    def operate(self, rows: list[tuple[str, ...]]) -> Asked:
        """What the model says about some inputs, past the cache; nothing is counted yet."""
        spec, template, kind = self.spec, self.spec.template, self.spec.kind
        asked: Asked
        if spec.operation == "embed":
            texts = [row[0] for row in rows] if template == "{0}" else [Prompt(template, row).text for row in rows]
            asked = self._pool.embed(self.model, texts, self.watch, width=self.dimension or 0)
            return asked
        prompts = [Prompt(template, row, "", kind) for row in rows]
        if spec.operation == "score":
            asked = self._pool.score(self.model, prompts, spec.choices, self.watch)
        else:
            limit = spec.max_tokens
            asked = self._pool.generate(self.model, prompts, max_tokens=limit, schema=None, control=self.watch)
        return asked

    def keep(self, keys: list[bytes], values: Any, raw: Any) -> None:
        """Put the answers of one micro-batch into the cache. Rows that failed are asked again another time."""
        if self.spec.operation == "score":
            self._cache.put(keys, answer_cache.pack_scores(values, raw))
        elif self.spec.operation == "embed":
            self._cache.put(keys, answer_cache.pack_vector(values))
        else:
            self._cache.put(keys, [answer_cache.pack_text(value) for value in values])

    def _merged(self, blobs: list[bytes | None], missing: list[int], asked: Asked, digests: list[bytes]) -> Answers:
        n = len(blobs)
        hits = [at for at, blob in enumerate(blobs) if blob is not None]
        kept = [blob for blob in blobs if blob is not None]
        values, raw = self._values(n, hits, kept, missing, asked)
        decoded = decode(self.spec, values, raw)
        tokens_in, tokens_out = np.zeros(n, np.int32), np.zeros(n, np.int32)
        tokens_in[missing] = asked.tokens_in
        tokens_out[missing] = asked.tokens_out
        errors = {missing[at]: said for at, said in asked.errors.items()}
        for at, said in decoded.errors.items():
            errors.setdefault(at, said)
        tiers = np.full(n, ORACLE, np.uint8)
        tiers[hits] = CACHE
        self._name_the_rest(decoded.answers, errors)
        return Answers(decoded.answers, decoded.scores, decoded.raw, tiers, digests, tokens_in, tokens_out, errors)

    def _name_the_rest(self, answers: pa.Array, errors: dict[int, str]) -> None:
        """Every input without an answer has an error."""
        if answers.null_count > len(errors):
            empty = np.flatnonzero(answers.is_null().to_numpy(zero_copy_only=False))
            for at in empty.tolist():
                errors.setdefault(at, _NAN)

    def _values(self, n: int, hits: list[int], kept: list[bytes], missing: list[int], asked: Asked) -> tuple[Any, Any]:
        """What the model said and what the cache held, in the order of the inputs."""
        if self.spec.operation == "generate":
            texts: list[Any] = [None] * n
            said: Any = asked.values
            for at, value in zip(missing, said, strict=True):
                texts[at] = value
            for at, blob in zip(hits, kept, strict=True):
                texts[at] = answer_cache.unpack_text(blob)
            return texts, None
        if not hits:
            return asked.values, asked.raw
        values: Any = asked.values
        if self.spec.operation == "embed":
            stored = answer_cache.unpack_vector(kept)
            found = np.full((n, stored.shape[1]), np.nan, np.float32)
            found[hits] = stored
            if missing and values.shape[1]:
                found[missing] = values
            return found, found
        scores, raw = (np.full((n, len(self.spec.choices)), np.nan, np.float32) for _ in range(2))
        scores[hits], raw[hits] = answer_cache.unpack_scores(kept, len(self.spec.choices))
        raw_now: Any = asked.raw
        scores[missing], raw[missing] = values, raw_now
        return scores, raw

    def _counted(self, rows: list[tuple[str, ...]], digests: list[bytes]) -> Answers:
        """AI_COUNT_TOKENS: the model's own count where it has one, else a guess from the characters."""
        texts = [Prompt(self.spec.template, row).text for row in rows]
        count = getattr(self.model, "count_tokens", None)
        counts = count(texts) if callable(count) else [max(1, round(len(text) / 4)) for text in texts]
        decoded = decode(self.spec, np.asarray(counts, dtype=np.int64))
        n, zeros = len(rows), np.zeros(len(rows), np.int32)
        self.watch.done_rows += n
        tiers = np.full(n, RULE, np.uint8)
        return Answers(decoded.answers, decoded.scores, decoded.raw, tiers, digests, zeros, zeros)

    def _failed(self, errors: dict[int, str]) -> None:
        first = errors[min(errors)]
        if self._raises:
            kind = DataError if first.startswith("context overflow") else OperationalError
            raise kind(f"{self.spec.function} failed on a row: {first} (ai_on_error = 'raise')")
        for said in errors.values():
            self.warned.append(said)


def cost(info: ModelInfo, batches: Sequence[Batch], guessed: float = 0.0) -> float:
    """US dollars that a model's maker takes for some micro-batches; each batch gets its own. `guessed` are the tokens
    of an input, where the model does not count them."""
    cached = info.price_in if info.price_cached is None else info.price_cached
    for batch in batches:
        if batch.outcome not in (RETRY, WASTED):
            new = (batch.tokens_in or guessed * batch.rows) - batch.tokens_cached
            usd = info.price_in * new + cached * batch.tokens_cached + info.price_out * batch.tokens_out
            batch.cost_usd = usd / 1e6
    return sum(batch.cost_usd for batch in batches)


def guessed_tokens(prompts: Sequence[Prompt]) -> float:
    """Tokens of a prompt in the mean, from characters, for models that do not count."""
    chars = sum(len(one.template) + sum(map(len, one.args)) for one in prompts)
    return chars / max(len(prompts), 1) / CHARS_PER_TOKEN + 1


def measured(op: OpTrace, rows: int) -> float:
    """US dollars that each of `rows` rows has cost an operator, machine time included."""
    return (op.cost_usd + USD_PER_SECOND * op.seconds_busy) / max(rows, 1)


def marked(errors: dict[int, str], n: int) -> np.ndarray:
    """Bool [n]: which positions failed; a budget or a token limit that left a row without an answer is no failure."""
    found = np.zeros(n, bool)
    found[[at for at, said in errors.items() if _state(said) == "failed"]] = True
    return found


def _state(error: str) -> str:
    """The status of a decision that has an error."""
    if error == SPENT:
        return "capped"
    return "cut" if error.startswith(CUT) else "failed"


def joined(parts: Sequence[Answers]) -> Answers:
    """Answers to inputs that follow each other, and whose decisions do."""
    import pyarrow as pa

    starts = np.cumsum([0, *(len(part.hashes) for part in parts)]).tolist()
    errors = {start + at: said for start, part in zip(starts, parts, strict=False) for at, said in part.errors.items()}
    scores, raw, tiers, tokens_in, tokens_out = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("scores", "raw", "tiers", "tokens_in", "tokens_out")
    )
    values = pa.concat_arrays([part.values for part in parts])
    hashes = [one for part in parts for one in part.hashes]
    return Answers(values, scores, raw, tiers, hashes, tokens_in, tokens_out, errors, parts[0].first)


def _states(errors: dict[int, str], n: int) -> list[str] | str:
    """Status of each decision; one for all where they are the same."""
    if not errors:
        return "answered"
    states = ["answered"] * n
    for at, said in errors.items():
        states[at] = _state(said)
    return states


def tier_names(tiers: np.ndarray) -> list[str] | str:
    """Names of tiers; one name where they are all the same."""
    if len(tiers) and bool((tiers == tiers[0]).all()):
        return TIERS[int(tiers[0])]
    return [TIERS[code] for code in tiers.tolist()]


def template_digest(template: str) -> str:
    """Hexadecimal digest of a template, for the trace."""
    return hashlib.blake2b(template.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
