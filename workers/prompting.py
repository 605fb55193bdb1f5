"""How a question is put to a small language model: as a statement that the model completes.

A small model answers "yes" or "no" almost by chance, but it knows well how a sentence about a text goes on.
So a yes/no question becomes a statement cut before its predicate, and its endings are scored:

    Is this review positive? {0}   ->   Text: {0} / In short: This review is | positive | negative
    Is this news about oil? {0}    ->   Text: {0} / Overall, this news is    | about oil

The instruction stands after the text and repeats nothing of it; the text is tokenised apart, so that nothing
in it can pass for an instruction's special tokens. Everything here is plain string work; where English is
ambiguous (where does the subject end?) several readings are returned and the model picks the likeliest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqluice.types import split_template

_BE = ("is", "are", "was", "were", "am")
_DO = ("does", "do", "did")
_OTHER = ("has", "have", "had", "can", "could", "should", "would", "will", "may", "might", "must")
AUXILIARIES = (*_BE, *_DO, *_OTHER)

_PREPOSITIONS = (
    *("about", "of", "on", "in", "from", "for", "at", "by", "to", "with", "without", "against", "under"),
    *("like", "related", "relevant", "concerned", "regarding"),
)
_ARTICLES = ("a", "an", "the", "any", "some", "this", "that", "one")

_PAIRS = """positive/negative good/bad great/terrible happy/unhappy satisfied/dissatisfied pleased/displeased
favourable/unfavourable favorable/unfavorable content/discontented glad/sad optimistic/pessimistic
true/false correct/incorrect right/wrong polite/rude friendly/unfriendly kind/unkind angry/calm upset/calm
clean/dirty cheap/expensive fast/slow hot/cold easy/difficult simple/complicated safe/dangerous
interesting/boring exciting/dull funny/serious useful/useless helpful/unhelpful clear/unclear
important/unimportant urgent/unimportant formal/informal fair/unfair honest/dishonest likely/unlikely
successful/unsuccessful enthusiastic/unenthusiastic complimentary/critical praising/critical
supportive/critical toxic/civil offensive/harmless harmful/harmless sincere/sarcastic serious/humorous
like/dislike love/hate enjoy/dislike recommend/criticise
likes/dislikes loves/hates enjoys/dislikes liked/disliked loved/hated enjoyed/disliked praises/criticises
praise/criticism compliment/complaint recommends/criticises agrees/disagrees approves/disapproves"""

OPPOSITES: dict[str, str] = {}
for _pair in _PAIRS.split():
    _left, _right = _pair.split("/")
    OPPOSITES.setdefault(_left, _right)
    OPPOSITES.setdefault(_right, _left)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement in two parts: what the model is given, and the predicate that it may go on with."""

    start: str
    predicate: str

    @property
    def text(self) -> str:
        """The whole statement."""
        return f"{self.start} {self.predicate}"


def instruction(template: str) -> tuple[str, tuple[int, ...]]:
    """The template's fixed text as an instruction, and the arguments it is about, in order.

    A placeholder that begins or ends the template is taken out: the text is shown before the instruction.
    Elsewhere it becomes a reference: `the text`, or `text 1` and `text 2` where there are several.
    """
    pieces = split_template(template.strip())
    slots = tuple(dict.fromkeys(piece for piece in pieces if isinstance(piece, int)))
    if len(slots) == 1:
        if pieces and isinstance(pieces[-1], int):
            pieces = pieces[:-1]
        elif pieces and isinstance(pieces[0], int):
            pieces = _without_subject(pieces)
    several = len(slots) > 1
    words = [
        piece if isinstance(piece, str) else (f"text {slots.index(piece) + 1}" if several else "the text")
        for piece in pieces
    ]
    return _tidy("".join(words)), slots


def _without_subject(pieces: list[str | int]) -> list[str | int]:
    """Drop a leading placeholder unless it is the subject of its sentence (`{0} is a complaint`)."""
    rest = pieces[1] if len(pieces) > 1 else ""
    follows = rest.split()[:1] if isinstance(rest, str) else []
    return pieces if follows and follows[0].lower() in AUXILIARIES and "?" not in str(rest) else pieces[1:]


def _tidy(text: str) -> str:
    text = re.sub(r"[\"'`]\s*(the text|text \d+)\s*[\"'`]", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip(" \t\n:;,-\"'`<>[]|")
    return re.sub(r"\s+([?.!])", r"\1", text)


def the_question(text: str) -> str:
    """The last question in `text`, or all of it."""
    found = re.findall(r"[^.?!:]*\?", text)
    return found[-1].strip() if found else text.strip()


def statements(question: str) -> list[Statement]:
    """Every reading of a yes/no question, or of a declarative sentence, as a statement; most often one is
    sensible English. Empty when it is neither."""
    words = the_question(question).rstrip("?.! ").split()
    lead = next((at for at, word in enumerate(words) if word.lower().strip(",") in AUXILIARIES), None)
    if lead is None or len(words) - lead < 2:
        return []
    if lead > 0 and not question.rstrip().endswith("?"):
        return [Statement(_upper(" ".join(words[: lead + 1])), " ".join(words[lead + 1 :]))]
    if lead > 0 and words[0].lower() in _ASKS:
        return []
    auxiliary, rest = words[lead].lower(), words[lead + 1 :]
    return [_reading(auxiliary, rest[:at], rest[at:]) for at in range(1, len(rest))]


_ASKS = ("what", "which", "who", "whom", "whose", "when", "where", "why", "how")


def _reading(auxiliary: str, subject: list[str], predicate: list[str]) -> Statement:
    start = _upper(" ".join(subject))
    if auxiliary == "does":
        return Statement(start, " ".join([third_person(predicate[0]), *predicate[1:]]))
    if auxiliary == "do":
        return Statement(start, " ".join(predicate))
    return Statement(f"{start} {auxiliary}", " ".join(predicate))


def third_person(verb: str) -> str:
    """`ask` -> `asks`, `have` -> `has`, `try` -> `tries`."""
    if verb == "have":
        return "has"
    if re.search(r"(s|x|z|ch|sh|o)$", verb):
        return verb + "es"
    return verb[:-1] + "ies" if re.search(r"[^aeiou]y$", verb) else verb + "s"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


_VERDICTS = ("positive", "good", "great", "favorable", "favourable", "excellent", "wonderful")
_VERDICT_YES = ("good", "favorable", "excellent", "wonderful")
_VERDICT_NO = ("bad", "unfavorable", "terrible", "awful")
_VERBS = {
    *("likes", "loves", "enjoys", "liked", "loved", "enjoyed", "like", "love", "enjoy", "praises", "praise"),
    *("recommends", "recommend", "agrees", "approves", "compliment"),
}


def endings(predicate: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ways to say yes and ways to say no, of equal number; no ways to say no when English has no short word.

    A word with a known opposite is replaced by it, and said with `very` as well; a verdict (positive, good,
    ...) is also said in other words: the mean over several wordings is steadier than one. Another bare
    adjective is negated.
    """
    words = predicate.split()
    for at in range(len(words) - 1, -1, -1):
        word = words[at].lower()
        if len(words) <= 4 and word in OPPOSITES:
            pairs = _wordings(word, OPPOSITES[word])
            made = [[" ".join([*words[:at], one, *words[at + 1 :]]) for one in pair] for pair in pairs]
            return tuple(yes for yes, _ in made), tuple(no for _, no in made)
    plain = words[0].lower() not in (*_PREPOSITIONS, *_ARTICLES)
    return ((predicate,), (f"not {predicate}",)) if len(words) <= 2 and plain else ((predicate,), ())


def _wordings(word: str, other: str) -> list[tuple[str, str]]:
    """Pairs (yes, no) of wordings for a word and its opposite."""
    pairs = [(word, other)]
    verdict = word in _VERDICTS or other in _VERDICTS
    if verdict:
        same = list(zip(_VERDICT_YES, _VERDICT_NO, strict=True))
        pairs += same if word in _VERDICTS else [(no, yes) for yes, no in same]
    if verdict or not ({word, other} & _VERBS):
        pairs.append((f"very {word}", f"very {other}"))
    return pairs
