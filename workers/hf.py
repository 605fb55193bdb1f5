"""Transformers models on torch: a local folder, a GGUF file, or a name of the model hub.

`load` gives a text model (`TextModel`: score and generate) or an embedder, by what the weights are. Scores
are raw log-probabilities of the endings that stand for the choices; `calibration` is taken off by the caller.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import ModelError, NotSupportedError
from sqluice.types import Completion, ModelInfo, Prompt
from sqluice.workers import calibration, forms, thinking, torch_load, torch_slots, torch_writing
from sqluice.workers.prepared import Prepared
from sqluice.workers.prompting import instruction, statements
from sqluice.workers.protocol import Wave
from sqluice.workers.torch_lm import Branch, CausalLM
from sqluice.workers.torch_load import Source

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence
    from pathlib import Path

    from sqluice.workers.protocol import Model
    from sqluice.workers.thinking import Thinking
    from sqluice.workers.together import Question

    Key = tuple[str, str, str, int, tuple[str, ...]]

KEPT_TOKENS = 4_000_000
KEPT_FORMS = 256
BUDGET_WORK = 1.4e11  # parameters x padded tokens of one micro-batch on a CPU: about 0.4 s on two cores


class TextModel:
    """A causal language model as SQLuice's `Model` (score and generate) and `LocalModel`."""

    def __init__(
        self, lm: CausalLM, tokens: Tokens, info: ModelInfo, token_budget: int, thinking: Thinking | None = None
    ) -> None:
        self.info = info
        self._thinking = thinking
        self.token_budget = token_budget
        self.slots = torch_slots.slots_of(lm)
        self._lm: CausalLM | None = lm
        self._tokens = tokens
        self._prepared: OrderedDict[Key, Prepared] = OrderedDict()

    def __repr__(self) -> str:
        return f"<{self.info.name} on {self.info.device}>"

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k] summed log-probabilities of the endings that stand for `choices`.

        Labels of different length are brought to one spread (`calibration.scales`). A prompt that carries its
        own question inside its argument is calibrated here, since `calibration` cannot know it.
        """
        found = np.full((len(prompts), len(choices)), np.nan, dtype=np.float32)
        for key, rows in self._groups(prompts, choices).items():
            asked = [prompts[row] if key[1] is None else key[1] for row in rows]
            found[rows] = self._scored(asked, choices, own=key[1] is not None)
        return found

    def beginning(self, question: Question) -> Hashable | None:
        """See `together.Joinable`. None for a question that stands in the row, or without a row's text, and for models
        whose attention has windows."""
        if self._open().windowed or _carries_question(question.sample, question.choices):
            return None
        prepared = self._prepare(question.sample, question.choices)
        if not prepared.form.slots:
            return None
        return (tuple(prepared.prefix), prepared.form.slots, tuple(map(tuple, prepared.after[:-1])))

    def question_tokens(self, question: Question) -> int:
        """See `together.Joinable`."""
        prepared = self._prepare(question.sample, question.choices)
        return len(prepared.after[-1]) + sum(len(tail) - 1 for tail in prepared.tails)

    def text_tokens(self, prompts: Sequence[Prompt], question: Question) -> list[int]:
        """See `together.Joinable`."""
        prepared = self._prepare(question.sample, question.choices)
        return [len(row) for row in prepared.rows(prompts, self._tokens, whole=False)]

    def score_all(self, prompts: Sequence[Prompt], questions: Sequence[Question]) -> np.ndarray:
        """See `together.Joinable`: scores of questions with the same `beginning`."""
        prepared = [self._prepare(one.sample, one.choices) for one in questions]
        rows = prepared[0].rows(prompts, self._tokens, whole=False)
        branches = [Branch(one.after[-1], one.tails) for one in prepared]
        told = self._open().branches(prepared[0].prefix, rows, branches)
        ends = np.cumsum([len(one.tails) for one in prepared])[:-1]
        parts = np.split(told, ends, axis=1)
        return np.hstack([one.by_choice(part) * one.scale for one, part in zip(prepared, parts, strict=True)])

    def calibration(self, prompt: Prompt, choices: Sequence[str]) -> np.ndarray:
        """Float32 [k] to subtract from `score`; from reference texts alone (see `calibration`)."""
        if _carries_question(prompt, choices):
            return np.zeros(len(choices), dtype=np.float32)
        return self._prepare(prompt, choices).bias

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt past what its template shares."""
        self._tokens.warm([arg for prompt in prompts for arg in prompt.args])
        fixed: dict[tuple[str, str, str, int], int] = {}
        found = []
        for prompt in prompts:
            key = (prompt.prefix, prompt.template, prompt.kind, len(prompt.args))
            if key not in fixed:
                fixed[key] = self._fixed(prompt)
            found.append(fixed[key] + sum(len(self._tokens.of(arg)) for arg in prompt.args))
        return found

    def prefix_tokens(self, prompt: Prompt) -> int:
        """Tokens that `lengths` leaves out: the shared prefix and the longest ending."""
        if prompt.kind in ("filter", "score") and not _carries_question(prompt, forms.YES_NO):
            prepared = self._prepare(prompt, forms.YES_NO)
            return len(prepared.prefix) + prepared.ending
        return 32

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special tokens."""
        return [len(self._tokens.plain(text)) for text in texts]

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """One completion a prompt at temperature 0; `finish_reason` is `length` where it was cut."""
        found: dict[int, Completion] = {}
        for wave in self.generate_in_slots(prompts, max_tokens=max_tokens, schema=schema):
            for error in wave.errors.values():
                raise error
            found |= wave.completions
        return [found[row] for row in range(len(prompts))]

    def generate_in_slots(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> Iterator[Wave]:
        """As `generate`, answers as they come; see `torch_writing`."""
        if schema is not None:
            raise NotSupportedError(f"{self.info.name} writes plain text only, not JSON by a schema")
        chats, unreadable = {}, {}
        for row, prompt in enumerate(prompts):
            try:
                chats[row] = self._tokens.chat(forms.messages(prompt))
            except Exception as error:  # noqa: BLE001 - tokenizers raise what they like; it costs this row
                unreadable[row] = error
        if unreadable:
            yield Wave(errors=unreadable)
        room = torch_writing.Room(self.info.context_tokens, self.token_budget, max_tokens)
        yield from torch_writing.waves(self._open(), chats, self._tokens.text, room, self._thinking)

    def close(self) -> None:
        """Free the weights and everything kept."""
        self._lm = None
        self._prepared.clear()
        self._tokens.clear()

    def _open(self) -> CausalLM:
        if self._lm is None:
            raise ModelError(f"{self.info.name} was closed")
        return self._lm

    def _groups(
        self, prompts: Sequence[Prompt], choices: Sequence[str]
    ) -> dict[tuple[object, Prompt | None], list[int]]:
        """Rows that share a form: (key, None), or (key, the prompt itself) where it carries its question."""
        groups: dict[tuple[object, Prompt | None], list[int]] = {}
        for row, prompt in enumerate(prompts):
            key = (prompt.prefix, prompt.template, prompt.kind, len(prompt.args))
            own = _with_question(prompt) if _carries_question(prompt, choices) else None
            groups.setdefault((key, own), []).append(row)
        return groups

    def _scored(self, prompts: Sequence[Prompt], choices: Sequence[str], *, own: bool) -> np.ndarray:
        prepared = self._prepare(prompts[0], choices)
        raw = self._raw(prompts, prepared) * prepared.scale
        return np.asarray(raw - prepared.bias if own else raw, dtype=np.float32)

    def _raw(self, prompts: Sequence[Prompt], prepared: Prepared) -> np.ndarray:
        """Float32 [n, k] log-probabilities of the choices: means over their endings; 0 for one without."""
        prefix, rows = prepared.prefix, prepared.rows(prompts, self._tokens)
        if not prepared.form.slots:
            prefix, rows = prefix[:-1], [prefix[-1:] for _ in prompts]
        return prepared.by_choice(self._open().endings(prefix, rows, prepared.tails))

    def _fixed(self, prompt: Prompt) -> int:
        """Tokens of the fixed text after the arguments, whichever choices will be asked."""
        if prompt.kind in ("filter", "score") and not _carries_question(prompt, forms.YES_NO):
            return self._prepare(prompt, forms.YES_NO).fixed
        return len(self._tokens.plain(prompt.template)) + 16

    def _prepare(self, prompt: Prompt, choices: Sequence[str]) -> Prepared:
        """The form of (template, kind, choices), tokenised and calibrated; kept."""
        key: Key = (prompt.prefix, prompt.template, prompt.kind, len(prompt.args), tuple(choices))
        kept = self._prepared.get(key)
        if kept is None:
            kept = self._calibrated(self._tokenised(self._form(prompt, choices)), len(prompt.args))
            self._prepared[key] = kept
            while len(self._prepared) > KEPT_FORMS:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return kept

    def _form(self, prompt: Prompt, choices: Sequence[str]) -> forms.Form:
        if forms.is_yes_no(choices):
            question, slots = instruction(prompt.prefix + prompt.template)
            readings = statements(question)
            if not readings:
                return forms.question_form(question, slots)
            texts = [self._tokens.plain(f"In short: {reading.text}.") for reading in readings]
            likely = int(self._open().likelihood(texts).argmax()) if len(texts) > 1 else 0
            return forms.statement_form(readings[likely], slots, self._tokens.frame)
        if prompt.kind == "score" and forms.is_grades(choices):
            return forms.grade_form(prompt, choices)
        return forms.label_form(prompt, choices)

    def _tokenised(self, form: forms.Form) -> Prepared:
        pieces = [self._tokens.fixed(piece) for piece in form.pieces]
        owner = [choice for choice, ways in enumerate(form.tails) for _ in ways]
        tails = [self._tokens.plain(way) for ways in form.tails for way in ways]
        ones = np.ones(len(form.tails), dtype=np.float32)
        return Prepared(form, self._tokens.start + pieces[0], pieces[1:], tails, owner, ones, ones * 0)

    def _calibrated(self, prepared: Prepared, count: int) -> Prepared:
        if not prepared.form.slots:
            return prepared
        prompts = [Prompt("", args) for args in calibration.reference_args(count)]
        raw = self._raw(prompts, prepared)
        if prepared.form.even:
            prepared.scale = calibration.scales(raw)
        outlier = prepared.form.threshold == "outlier"
        set_bias = calibration.presence_bias if outlier else calibration.bias
        prepared.bias = set_bias(raw * prepared.scale)
        return prepared


def _carries_question(prompt: Prompt, choices: Sequence[str]) -> bool:
    """Whether the template says nothing and the row's own text is the question."""
    return forms.is_yes_no(choices) and prompt.kind in ("filter", "score") and _with_question(prompt) is not None


def _with_question(prompt: Prompt) -> Prompt | None:
    """A prompt whose one text holds a question and what it is about, taken apart; None otherwise."""
    template = (prompt.prefix + prompt.template).strip()
    if prompt.args and (template != "{0}" or len(prompt.args) != 1):
        return None
    text = prompt.args[0] if prompt.args else template
    parts = forms.split_question(text)
    if parts is None:
        return Prompt(text.replace("{", "(").replace("}", ")"), (), kind=prompt.kind)
    question = parts[0].replace("{", "(").replace("}", ")")
    return Prompt(question + " {0}", (parts[1],), kind=prompt.kind)


class Tokens:
    """A tokenizer's three uses: row text (special tokens are plain text), fixed text, chats. Row tokens are
    kept, so that `lengths` and then `score` tokenise once."""

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._tokenizer = tokenizer
        self._data = _data_tokenizer(tokenizer)
        self._limit = limit
        self._kept: OrderedDict[str, list[int]] = OrderedDict()
        self._size = 0
        self._chats: OrderedDict[tuple[str, ...], tuple[list[int], list[int]]] = OrderedDict()
        self.start = _start(tokenizer)
        self.frame = _frame(tokenizer)

    def warm(self, texts: Sequence[str]) -> None:
        """Tokenise at once those of `texts` that are not kept."""
        new = list(dict.fromkeys(text for text in texts if text not in self._kept))
        cut = self._limit * 8  # nobody tokenises megabytes of a row that cannot fit
        heads = [text[:cut] for text in new]
        for text, head, ids in zip(new, heads, self._encoded(heads), strict=True):
            whole = ids if len(head) == len(text) or len(ids) > self._limit else self._encoded([text])[0]
            self._keep(text, whole)

    def of(self, text: str) -> list[int]:
        """Tokens of one row text."""
        kept = self._kept.get(text)
        if kept is None:
            self.warm([text])
            kept = self._kept.get(text) or self._encoded([text])[0]
        return kept

    def plain(self, text: str) -> list[int]:
        """Tokens of any text, special tokens taken as plain text; not kept."""
        return self._encoded([text])[0]

    def fixed(self, text: str) -> list[int]:
        """Tokens of text of ours, in which special tokens count."""
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def text(self, tokens: Sequence[int]) -> str:
        """The text of written tokens."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def chat(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Tokens of a whole chat up to the answer: those in front of the user's text, which every row of a template
        shares, and the rest, at least one; the user's text as plain text."""
        shared = tuple(one["content"] for one in messages[:-1])
        if shared not in self._chats:
            self._chats[shared] = self._framed(messages[:-1])
            while len(self._chats) > KEPT_FORMS:
                self._chats.popitem(last=False)
        before, after = self._chats[shared]
        rest = [*self.of(messages[-1]["content"]), *after]
        return (before, rest) if rest else (before[:-1], before[-1:])

    def _framed(self, shared: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        mark = "\ue000"
        before, after = _around(self._tokenizer, [*shared, {"role": "user", "content": mark}], mark)
        ids = self.fixed(before)
        return (ids if ids[:1] == self.start else [*self.start, *ids]), self.fixed(after)

    def clear(self) -> None:
        """Forget every kept text."""
        self._kept.clear()
        self._size = 0

    def _keep(self, text: str, ids: list[int]) -> None:
        if text in self._kept:
            return
        self._kept[text] = ids
        self._size += len(ids) + len(text) // 8 + 8
        while self._size > KEPT_TOKENS and len(self._kept) > 1:
            old, gone = self._kept.popitem(last=False)
            self._size -= len(gone) + len(old) // 8 + 8

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(self._data, _Slow):
            return [self._data.encode(text) for text in texts]
        found = self._data.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in found]


@dataclass(frozen=True, slots=True)
class _Slow:
    """A tokenizer without a fast form."""

    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _data_tokenizer(tokenizer: Any) -> Any:
    """A copy of the tokenizer in which `<|im_end|>` and the like are ordinary text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _Slow(tokenizer)
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(backend.to_str())
    copy.encode_special_tokens = True
    copy.no_truncation()
    copy.no_padding()
    return copy


def _start(tokenizer: Any) -> list[int]:
    """The begin token where this tokenizer puts one, else nothing."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and list(tokenizer.encode("a"))[:1] == [begin] else []


def _frame(tokenizer: Any) -> forms.Chat:
    """What the model's chat format puts around a user's text; plain text where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return forms.PLAIN
    mark = "\ue000"
    system = {"role": "system", "content": "You describe a text in one sentence."}
    before, after = _around(tokenizer, [system, {"role": "user", "content": mark}], mark)
    begin = tokenizer.bos_token or ""
    return forms.Chat(before.removeprefix(begin) if _start(tokenizer) else before, after)


def _around(tokenizer: Any, messages: list[dict[str, str]], mark: str) -> tuple[str, str]:
    """The chat as text before and after `mark`. A format that knows no system role gets it in the user's."""
    if not getattr(tokenizer, "chat_template", None):
        return "".join(f"{one['content']}\n\n" for one in messages[:-1]), "\n\n"
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # noqa: BLE001 - templates are programs that raise what they like
        joined = "\n\n".join(one["content"] for one in messages)
        folded = [{"role": "user", "content": joined}]
        text = tokenizer.apply_chat_template(folded, tokenize=False, add_generation_prompt=True)
    before, _, after = str(text).partition(mark)
    return before, after


def load(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    threads: int = 0,
    thinking_tokens: int = thinking.BUDGET,
    keep: Path | None = None,
) -> Model:
    """The model at `name` (a folder, a .gguf file, or `org/name[@revision]`), ready to be asked.

    In `keep`, a folder of ours, a GGUF file leaves a copy that opens faster. `MissingExtraError` without
    torch, `WeightsError` when the weights are missing, damaged or out of reach, `ModelError` for a device or
    kind of model that cannot be used.
    """
    torch_load.require(f"model {name}")
    import torch

    source = torch_load.find(name, revision)
    where = torch_load.device_of(device)
    if threads:
        torch.set_num_threads(threads)
    kind = torch_load.dtype_of(dtype, where)
    copied = torch_load.copy_of(source, keep, str(kind).removeprefix("torch."))
    files = Source(source.name, copied) if copied is not None and copied.is_dir() else source
    settings = torch_load.open_config(files)
    if torch_load.is_encoder(settings):
        from sqluice.workers import torch_embedder

        return torch_embedder.load(source, dtype, where)
    try:
        tokenizer, model = open_text(files, kind)
    except ModelError:
        if files is source or copied is None:
            raise
        shutil.rmtree(copied, ignore_errors=True)  # a damaged copy; the file it was made from is still there
        files = source
        tokenizer, model = open_text(files, kind)
    if copied is not None and files is source:
        torch_load.keep(model, tokenizer, copied)
    ready = model.to(device=where, dtype=kind)
    details = (torch_load.digest(source),)
    return text_model(source.gguf or source.name, tokenizer, ready, details, thinking_tokens)


def open_text(source: Source, dtype: Any) -> tuple[Any, Any]:
    """Tokenizer and model as transformers gives them; GGUF and compressed-tensors are dequantised."""
    import transformers

    packed = torch_load.dequantizing(source)
    try:
        with torch_load.quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(**source.where)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                **source.where, **packed, dtype=dtype, use_safetensors=True
            )
    except Exception as error:
        raise torch_load.unreadable(source, error) from error
    return tokenizer, model


def text_model(name: str, tokenizer: Any, model: Any, details: tuple[str, ...], thinking_tokens: int) -> Model:
    """A loaded causal model as SQLuice's; its revision is a digest of `details` and of how it is asked."""
    model = model.eval().requires_grad_(False)
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2048)
    parameters = torch_load.parameters_of(model)
    kind, device = str(model.dtype).removeprefix("torch."), str(model.device)
    thinks = thinking.of_tokenizer(tokenizer, thinking_tokens)
    thought = (f"thinking {thinks.budget}",) if thinks else ()
    info = ModelInfo(
        name=name,
        revision=torch_load.combined(*details, kind, forms.VERSION, calibration.VERSION, *thought),
        context_tokens=context,
        reasoning=thinks is not None,
        device=device,
        extra={"dtype": kind, "parameters": str(parameters), "backend": "torch"},
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    lm = CausalLM(model, pad, _stops(tokenizer, model))
    budget = _budget(parameters, device)
    return TextModel(lm, Tokens(tokenizer, context), info, budget, thinks)  # type: ignore[return-value]


def _budget(parameters: int, device: str) -> int:
    return 32_768 if device.startswith("cuda") else max(256, min(2048, int(BUDGET_WORK / parameters)))


def _stops(tokenizer: Any, model: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, the model's, and the usual ends of a turn."""
    named = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    for token in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"):
        at = tokenizer.convert_tokens_to_ids(token)
        if isinstance(at, int) and at != tokenizer.unk_token_id and at >= 0:
            found.add(at)
    return sorted(stop for stop in found if stop is not None)
