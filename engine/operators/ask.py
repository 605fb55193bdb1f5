"""Asks one question about many inputs: cache, model, decoding, and what the trace and the report need of it.

Both ways of running a statement end here: stages bring windows of distinct inputs, the row-wise functions bring what
DuckDB hands them.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.engine import answer_cache
from sqluice.errors import DataError, OperationalError
from sqluice.types import Progress, Prompt
from sqluice.udfs.answers import decode
from sqluice.workers.pool import NOT_ASKED
from sqluice.workers.protocol import Asked
from sqluice.workers.replay import prompt_digest, template_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from sqluice.config import Value
    from sqluice.engine.trace import OpTrace
    from sqluice.udfs.spec import Spec
    from sqluice.workers.protocol import Batch

ORACLE, CACHE, RULE = 0, 1, 2
TIERS = ("oracle", "cache", "rule")
_NAN = "model returned NaN"


@dataclass(slots=True)
class Answers:
    """Answers to n inputs, in their order. `tiers` are numbers in `TIERS`; `errors` are keyed by position."""

    values: pa.Array
    scores: np.ndarray
    raw: np.ndarray
    tiers: np.ndarray
    hashes: list[bytes]
    tokens_in: np.ndarray
    tokens_out: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Watch:
    """How a pool's work is watched: `stop` tells whether to end it, `report` takes progress."""

    stop: Callable[[], None]
    report: Callable[[Progress], None] | None
    operator: str
    total: int | None = None
    done_rows: int = 0
    calls: int = 0
    cached: int = 0
    started: float = field(default_factory=time.monotonic)
    keep: Callable[[list[int], Any, Any], None] | None = None

    def check(self) -> None:
        """Raises when the query is to stop."""
        self.stop()

    def done(self, batch: Batch) -> None:
        """One attempt at a micro-batch is over."""
        if batch.outcome == "ok" or batch.rows == 1:
            self.done_rows += batch.rows
            self.calls += batch.rows
        self.tell()

    def answered(self, rows: list[int], values: Any, raw: Any) -> None:
        """Rows of a micro-batch that have answers: calibrated and raw scores, embeddings or completions."""
        if self.keep is not None and rows:
            self.keep(rows, values, raw)

    def tell(self) -> None:
        """Report where the operator is."""
        if self.report is not None:
            seconds = time.monotonic() - self.started
            self.report(Progress(self.operator, self.done_rows, self.total, self.calls, self.cached, seconds))


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
        self.asked = self.hits = 0

    def answer(self, columns: Sequence[Sequence[str]], n: int) -> Answers:
        """Answers to n distinct inputs without NULLs, one column an argument (none for a constant question).

        `OperationalError` for the first row that fails under `ai_on_error = 'raise'`; what is answered by then is in
        the cache, as it is after an interruption.
        """
        rows: list[tuple[str, ...]] = list(zip(*columns, strict=True)) if columns else [()] * n
        digests = [prompt_digest(self._state, row) for row in rows]
        if self.spec.operation == "count_tokens":
            return self._counted(rows, digests)
        keys = answer_cache.keys(self._scope, digests)
        blobs = self._cache.get(keys)
        missing = [at for at, blob in enumerate(blobs) if blob is None]
        self._saw_cached(n - len(missing))
        asked = self._ask(rows, missing, keys)
        answers = self._merged(blobs, missing, asked, digests)
        if answers.errors:
            self._failed(answers.errors)
        return answers

    def _saw_cached(self, hits: int) -> None:
        self.hits += hits
        self.watch.cached += hits
        self.watch.done_rows += hits
        if hits:
            self.watch.tell()

    def _ask(self, rows: list[tuple[str, ...]], missing: list[int], keys: list[bytes]) -> Asked:
        """What the model says about the rows in `missing`; each micro-batch goes into the cache as it comes."""
        if not isinstance(self._cache, answer_cache.NoCache):
            self.watch.keep = lambda at, values, raw: self._keep([keys[missing[row]] for row in at], values, raw)
        try:
            asked = self._operate([rows[at] for at in missing])
        except BaseException as error:
            part = getattr(error, "asked", None)
            if isinstance(part, Asked):
                self._charge(part)
            raise
        finally:
            self.watch.keep = None
        self._charge(asked)
        return asked

    def _charge(self, asked: Asked) -> None:
        """Count what was asked, and what it cost."""
        self.asked += len(asked.tokens_in) - sum(said == NOT_ASKED for said in asked.errors.values())
        self.op.add_batches(asked.batches)
        info = self.model.info
        tokens = [(batch.tokens_in, batch.tokens_out) for batch in asked.batches]
        price = sum(info.price_in * came + info.price_out * went for came, went in tokens)
        self.op.cost_usd += price / 1e6

    def _operate(self, rows: list[tuple[str, ...]]) -> Asked:
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

    def _keep(self, keys: list[bytes], values: Any, raw: Any) -> None:
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


def template_digest(template: str) -> str:
    """Hexadecimal digest of a template, for the trace."""
    return hashlib.blake2b(template.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
