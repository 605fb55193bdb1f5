"""The words that `joins/detect.py` knows: names of classes, of labels and of things, and what needs both texts."""

from __future__ import annotations

import re


def _words(line: str) -> frozenset[str]:
    return frozenset(line.split())


CLASSES = _words(
    "age area author brand category century city class color colour continent country cuisine currency day decade"
    " department dialect diagnosis difficulty domain education emotion era faculty field format framework gender genre"
    " grade hemisphere industry intent kind language league level license licence location maker manufacturer material"
    " month mood nationality newspaper occupation party period platform polarity priority profession publisher rating"
    " region religion season sector sentiment severity sex sort source specialty sport stage stance state status style"
    " subject team tense theme tone topic type urgency vendor writer year"
)
"""Attributes that sort texts into classes."""

LABELS = _words(
    "area aspect cat category class country cuisine department diagnosis discipline domain emotion feature field folder"
    " genre group industry intent kind label lang language level mood priority queue rating region section sector"
    " sentiment severity sport specialty stance status style subject tag team theme tone topic type urgency"
)
"""Nouns before a value, or names of its column, that make the value a label."""

THINGS = _words(
    "account action address album answer apartment app argument article artist bill book bug building business car case"
    " child city claim clause client company concept conclusion content contract conversation course crime customer"
    " dataset decision device disease document drug email entity episode event experiment fact file film finding firm"
    " function game gene hotel house idea image incident individual information invoice issue item job law listing man"
    " meaning message method model movie name news object offer one opinion order organisation organization paper"
    " patient payment people person phone photo picture place point problem product property protein purchase query"
    " question reason recipe record report restaurant result review ruling sentence seller song statement story study"
    " substance summary term text thing title track transaction trial user value vehicle version view way woman word"
    " work"
)
"""What two texts may be about as well: to find that out both are needed."""

LONG = _words(
    "abstract ad answer body claim clause content description document hypothesis paragraph passage premise query"
    " question resume review sentence statement summary text"
)
"""Names of columns that hold texts, not labels."""

BOTH_TEXTS = re.compile(
    r"\b(?:contradict\w*|entail\w*|impl(?:y|ies)|paraphras\w*|translat(?:ion|es?)|duplicates?|cit(?:es?|ing)|rephras\w*"
    r"|refut\w*|rebut\w*|summari[sz]es?|similar\w*|equivalent|overrul\w*|supersed\w*|verif(?:y|ies)|disprov\w*|proves?"
    r"|caus(?:es|ed by)|leads? to|belong together|compatible|complement\w*|useful|suitable|qualified for|depends? on"
    r"|better|worse|best|repl(?:y|ies) to|respon(?:ds?|se) to|follows? from|helps? (?:with|against|to)|treats? the"
    r"|supports? (?:the |a |\{)|quot(?:es?|ing) (?:the |from |\{)|interacts?|fix(?:es)? (?:the |\{)|needs? the"
    r"|answers? (?:to |the |\{)|answered by|means? (?:the same|what)|says? (?:the same|what))"
    r"|(?<!different )\b(?:more|less|rather|\w+er) (?:\w+ )?than\b|\{[01]\} (?:also )?answers?\b|\bsame as \{"
)
"""Wordings of what cannot be seen from one text."""

PLACE = re.compile(r"\{(\d+)\}")
NEGATION = re.compile(r"\b(?:not|cannot|never|neither|nor|without|no)\b|n't\b")
CONCESSION = re.compile(
    r",? \(?(?:even (?:if|though|when)|although|though|whatever|whichever|regardless|no matter|for example|for instance"
    r"|e\.g\.|such as)\b.*?(?:\)|$|(?=[.?!](?: |$)))"
)
BOTH_OR_ONE = re.compile(
    r"[,;:]? [-(\u2013\u2014]? ?(?:either )?(?:both(?: are)? \w+ or both(?: are)? \w+"
    r"|one(?: is)? \w+,?(?: and| while)? the other(?: is| one is)? \w+)\)?"
)
"""What says "same" or "opposite" once more: "either both are good or both are bad"."""

COMPOUND = re.compile(r"\b(?:and|but|or|while|yet)\b(?!(?: [\w'-]+){0,3} \{)|\b(?:only|except|otherwise|apart from)\b")
RESTATED = re.compile(r"\b(?:that is|i\.e\.|in other words|meaning)(?=\W)")

SAME, DIFFERENT = "same", "different"
_POLES = {
    SAME: r"same|identical|matching|equal|common|shares?|agrees?|coincides?|match(?:es)?",
    DIFFERENT: r"different|differing|distinct|opposite|opposing|opposed|contrary|differs?|disagrees?",
}
POLE = re.compile(rf"\b(?:({_POLES[SAME]})|({_POLES[DIFFERENT]}))\b")
_STOPS = (
    "a|an|and|are|as|at|be|been|being|between|but|by|did|do|does|each|even|for|from|had|has|have|if|in|into|is|it"
    "|of|on|one|or|other|so|than|that|the|their|them|they|to|was|were|when|which|while|who|with"
)
NOUN = re.compile(
    rf"(?: (?:in|on|by|a|an|the|their|its|this))*"
    rf"( (?!(?:{_STOPS})\b)[a-z][\w'-]*(?: (?:of )?(?!(?:{_STOPS})\b)[a-z][\w'-]*){{0,4}})(?! ?:? ?\{{|[\w'-])"
)
HELD = re.compile(r"\b(?:from|of|in|by|at|on|under|to|have|has|having|shares?|require|requires) (?:the |an? |one )?$")
"""What stands before "same" where texts have something in common; after other words, "are the same ..", they are it."""

OWNED = re.compile(r"\b([a-z][\w-]*) of (?:the |both )?(?:[a-z][\w-]* )?\{[01]\}")

_LABEL = "|".join(sorted(LABELS, key=len, reverse=True))
BEFORE = re.compile(r"([a-z][\w-]*)( of| named| called)?[: ]+\{([01])\}")
AFTER = re.compile(rf"\{{([01])\}} (?:{_LABEL})\b(?!:)")
NOUN_OF = re.compile(rf"\b(?:{_LABEL}) of (the [a-z][\w-]* |an? [a-z][\w-]* |)\{{([01])\}}")
IS_ITS = re.compile(r"\{[01]\} (?:is |describes? |names? )?(?:an?|the) [a-z -]+ of [^{]*\{|of [^{]*\{[01]\} is \{")
LINK = re.compile(
    r"\b(?:(?P<strong>about|concerns?|concerning|regarding|mentions?|belongs? (?:to|in|under)|falls? (?:under|in|into)"
    r"|(?:mapped|assigned|routed|sent|forwarded) to|filed (?:under|in|as)|tagged (?:correctly )?(?:with|as|by)"
    r"|(?:classified|categori[sz]ed|label+ed|marked)(?: correctly)? (?:as|under|in|into|with)|case of|instance of"
    r"|deals? with|counts? as|qualif(?:y|ies) as|written in)|(?P<weak>discuss(?:es)?|covers?|express(?:es)?|shows?"
    r"|describes?|relates? to|contains?|points? to|regulates?|(?<=\} )is|in|of|into|to|under|as))"
    r"((?: [a-z][\w'-]*){0,5}) \{([01])\}"
)

LABELS_OF: dict[str, tuple[str, ...]] = {
    "sentiment": ("positive", "negative"),
    "polarity": ("positive", "negative"),
    "season": ("spring", "summer", "autumn", "winter"),
    "hemisphere": ("northern", "southern"),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": (
        *("January", "February", "March", "April", "May", "June"),
        *("July", "August", "September", "October", "November", "December"),
    ),
}
"""Attributes with a closed set of values."""

_UNCHANGED = frozenset(("series", "species", "news", "politics", "physics", "mathematics", "gas", "bias", "canvas"))


def singular(words: str) -> str:
    """A noun, or the first noun of "levels of education", in the singular."""
    first, of, rest = words.partition(" of ")
    start, space, noun = first.rpartition(" ")
    return start + space + _singular(noun) + of + rest


def _singular(noun: str) -> str:
    if noun in _UNCHANGED or noun.endswith(("ss", "us", "is")) or not noun.endswith("s"):
        return noun
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    return noun[:-2] if noun.endswith(("sses", "xes", "ches", "shes")) else noun[:-1]


def normalised(template: str) -> str:
    """Lower case on one line, without marks around placeholders."""
    text = template.replace("{{", " ").replace("}}", " ").lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = re.sub("[\"`*<>\\[\\]\u201c\u201d\u00ab\u00bb]|(?<=})'|'(?=\\{)", "", text)
    text = re.sub(r"(?<=})\s*\n", " . ", text)  # a side on a line of its own ends there
    return " ".join(text.replace("one and the same", "the same").split())


def without_concession(text: str) -> str:
    """The text without "even if ..", examples and repetitions, which add nothing; with them if they hold a side."""
    short = BOTH_OR_ONE.sub("", CONCESSION.sub("", text))
    return short if set(PLACE.findall(short)) == {"0", "1"} else text


def head(name: str) -> str:
    """The word that says what kind of thing a name is for: `level` of "level of education"."""
    return singular(name.partition(" of ")[0].rpartition(" ")[2])


def sentence_at(text: str, at: int) -> str:
    """The sentence around a place."""
    start = max((end.end() for end in re.finditer(r"[.?!] ", text[:at])), default=0)
    end = re.compile(r"[.?!](?: |$)").search(text, at)
    return text[start : end.start() if end else len(text)]
