"""The star schema and the queries of `plans.py`.

A query's `questions` are its prompts in the order written, each with its number of arguments; `reduced` returns, for
every row that all cheap conditions and joins leave, the arguments of each question; `formula` is how the questions are
combined: a number, 'cheap' (the last column of `reduced`, which costs nothing), or ('where' | 'and' | 'or' | 'each', ..) or ('not', ..); 'each' asks
its arms apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TABLES = [
    "CREATE TABLE authors AS SELECT i AS id, 'author ' || i AS name, 'bio of ' || i AS bio, 'country ' || (i % 12) AS "
    "country FROM range(300) r(i)",
    "CREATE TABLE papers AS SELECT i AS id, (i * 7919) % 300 AS author_id, 1990 + (i * 31) % 35 AS year, 'venue ' || "
    "(i % 25) AS venue, 'title ' || i AS title, 'abstract ' || i AS abstract FROM range(2000) r(i)",
    "CREATE TABLE images AS SELECT i AS id, (i * 104729) % 2000 AS paper_id, 'caption ' || i AS caption, 'kind ' || "
    "(i % 6) AS kind FROM range(4000) r(i)",
    "CREATE TABLE many_papers AS SELECT i AS id, 'abstract ' || i AS abstract, DATE '2026-01-01' + (i // 30)::INTEGER "
    "AS published FROM range(10000) r(i)",
    "CREATE TABLE many_images AS SELECT i AS id, i % 10000 AS paper_id, 'caption ' || i AS caption FROM range(100000) r(i)",
    "CREATE TABLE products AS SELECT i AS id, 'product ' || i AS name, 'category ' || (i % 20) AS category, "
    "'description ' || i AS descr FROM range(400) r(i)",
    "CREATE TABLE reviews AS SELECT i AS id, (i * 7919) % 400 AS product_id, 1 + (i * 13) % 5 AS stars, 'review ' || "
    "(i % 3500) AS text, DATE '2026-01-01' + ((i * 37) % 300)::INTEGER AS posted FROM range(4000) r(i)",
    "CREATE TABLE tickets AS SELECT i AS id, (i * 31) % 400 AS product_id, 'subject ' || (i % 150) AS subject, "
    "CASE WHEN i % 40 <> 0 THEN 'body ' || i END AS body, i % 4 AS priority FROM range(2000) r(i)",
]


@dataclass(frozen=True, slots=True)
class Query:
    """One query of the corpus."""

    name: str
    sql: str
    questions: list[tuple[str, int]]
    reduced: str
    formula: Any


def conjunction(name: str, source: str, questions: list[tuple[str, str]], cheap: str = "true") -> Query:
    """`SELECT count(*) FROM source WHERE questions AND cheap`; a question is a prompt and its column."""
    calls = [f"AI_FILTER(PROMPT('{prompt}', {column}))" for prompt, column in questions]
    columns = ", ".join(column for _, column in questions)
    return Query(
        name,
        f"SELECT count(*) FROM {source} WHERE {' AND '.join(calls)} AND {cheap}",
        [(prompt, prompt.count("{")) for prompt, _ in questions],
        f"SELECT {columns} FROM {source} WHERE {cheap}",
        ("where", *range(len(questions))),
    )


def written(name: str, sql: str, reduced: str, prompts: list[str], formula: Any) -> Query:
    """A query in its own words: `{0}` .. in `sql` are replaced by the questions about the columns of `reduced`."""
    return Query(name, sql, [(prompt, prompt.count("{")) for prompt in prompts], reduced, formula)


def ask(prompt: str, *columns: str) -> str:
    """An AI_FILTER."""
    return f"AI_FILTER(PROMPT('{prompt}', {', '.join(columns)}))"


PAPERS = "papers p JOIN authors a ON a.id = p.author_id"
IMAGES = "images i JOIN papers p ON p.id = i.paper_id JOIN authors a ON a.id = p.author_id"
REVIEWS = "reviews r JOIN products s ON s.id = r.product_id"
TICKETS = "tickets t JOIN products s ON s.id = t.product_id"

LOOSE, HALF, TIGHT, RARE = "mostly 90%: {0}", "half 50%: {0}", "few 10%: {0}", "rare 2%: {0}"

_SIMPLE = [
    conjunction("one question", "papers p", [(HALF, "p.abstract")], "p.year > 2010"),
    conjunction("loose then tight", "papers p", [(LOOSE, "p.abstract"), (TIGHT, "p.abstract")]),
    conjunction("tight then loose", "papers p", [(TIGHT, "p.abstract"), (LOOSE, "p.abstract")]),
    conjunction("half and half", "papers p", [(HALF, "p.abstract"), ("other 50%: {0}", "p.title")]),
    conjunction(
        "loose then tight, cheap date", "papers p", [(LOOSE, "p.abstract"), (TIGHT, "p.title")], "p.year = 2000"
    ),
    conjunction("three, tightest last", "papers p", [(LOOSE, "p.title"), (HALF, "p.abstract"), (RARE, "p.abstract")]),
    conjunction("three, tightest first", "papers p", [(RARE, "p.title"), (HALF, "p.abstract"), (LOOSE, "p.abstract")]),
    conjunction(
        "four", "reviews r", [(LOOSE, "r.text"), ("b 70%: {0}", "r.text"), ("c 40%: {0}", "r.text"), (TIGHT, "r.text")]
    ),
    conjunction(
        "five",
        "reviews r",
        [(LOOSE, "r.text"), ("b 80%: {0}", "r.text"), ("c 60%: {0}", "r.text"), (HALF, "r.text"), (RARE, "r.text")],
        "r.stars > 1",
    ),
    conjunction("few distinct last", "tickets t", [(HALF, "t.body"), ("s 50%: {0}", "t.subject")]),
    conjunction("few distinct but loose", "tickets t", [(HALF, "t.body"), ("s 95%: {0}", "t.subject")]),
    conjunction("few distinct, tight", "tickets t", [(LOOSE, "t.body"), ("s 10%: {0}", "t.subject")], "t.priority = 1"),
    conjunction("small table", "products s", [(LOOSE, "s.descr"), (TIGHT, "s.descr")], "s.id < 60"),
    conjunction("tiny table", "products s", [(HALF, "s.descr"), (TIGHT, "s.name")], "s.id < 20"),
    conjunction("constants and duplicates", "reviews r", [(HALF, "r.text"), (HALF, "r.text"), (TIGHT, "r.text")]),
    conjunction(
        "two columns in one prompt", "reviews r", [("pair 50%: {0} {1}", "r.text, r.stars"), (TIGHT, "r.text")]
    ),
]

_JOINS = [
    conjunction("both sides of a join", PAPERS, [(HALF, "p.abstract"), ("bio 30%: {0}", "a.bio")]),
    conjunction("both sides, dimension loose", PAPERS, [(HALF, "p.abstract"), ("bio 95%: {0}", "a.bio")]),
    conjunction("both sides, fact tight", PAPERS, [("bio 50%: {0}", "a.bio"), (RARE, "p.abstract")]),
    conjunction("join with a date", PAPERS, [(LOOSE, "p.abstract"), ("bio 20%: {0}", "a.bio")], "p.year = 2001"),
    conjunction(
        "three tables",
        IMAGES,
        [(HALF, "i.caption"), (TIGHT, "p.abstract"), ("bio 40%: {0}", "a.bio")],
        "i.kind = 'kind 2'",
    ),
    conjunction("fan-out", IMAGES, [(LOOSE, "i.caption"), (LOOSE, "p.title"), ("c 30%: {0}", "a.country")]),
    conjunction("dimension of twenty", REVIEWS, [(HALF, "r.text"), ("cat 25%: {0}", "s.category")]),
    conjunction(
        "reviews and products",
        REVIEWS,
        [(LOOSE, "r.text"), ("d 60%: {0}", "s.descr"), (TIGHT, "r.text")],
        "r.stars < 3",
    ),
    conjunction("tickets and products", TICKETS, [("d 80%: {0}", "s.descr"), (HALF, "t.body"), (TIGHT, "t.subject")]),
    conjunction("pairs across a join", REVIEWS, [("fits 50%: {0} {1}", "r.text, s.name"), ("d 20%: {0}", "s.descr")]),
    conjunction(
        "the paper's query",
        "many_images i JOIN many_papers p ON p.id = i.paper_id",
        [("shows 10%: {0}", "i.caption"), ("about 50%: {0}", "p.abstract")],
        "p.published = DATE '2026-11-29'",
    ),
]

_TREES = [
    written(
        "or, likely arm last",
        f"SELECT count(*) FROM papers p WHERE {ask(TIGHT, 'p.title')} OR {ask(LOOSE, 'p.abstract')}",
        "SELECT p.title, p.abstract FROM papers p",
        [TIGHT, LOOSE],
        ("where", ("or", 0, 1)),
    ),
    written(
        "or of three",
        f"SELECT count(*) FROM papers p WHERE {ask(RARE, 'p.title')} OR {ask(HALF, 'p.abstract')} OR "
        f"{ask('v 60%: {0}', 'p.venue')}",
        "SELECT p.title, p.abstract, p.venue FROM papers p",
        [RARE, HALF, "v 60%: {0}"],
        ("where", ("or", 0, 1, 2)),
    ),
    written(
        "or beside a conjunct",
        f"SELECT count(*) FROM reviews r WHERE ({ask(TIGHT, 'r.text')} OR {ask('o 20%: {0}', 'r.text')}) AND "
        f"{ask('c 30%: {0}', 'r.text')}",
        "SELECT r.text, r.text, r.text FROM reviews r",
        [TIGHT, "o 20%: {0}", "c 30%: {0}"],
        ("where", ("or", 0, 1), 2),
    ),
    written(
        "cheap arm of an or",
        f"SELECT count(*) FROM reviews r WHERE {ask(LOOSE, 'r.text')} AND (r.stars = 5 OR {ask(TIGHT, 'r.text')})",
        "SELECT r.text, r.text, r.stars = 5 FROM reviews r",
        [LOOSE, TIGHT],
        ("where", 0, ("or", "cheap", 1)),
    ),
    written(
        "not of an and",
        f"SELECT count(*) FROM papers p WHERE NOT ({ask(LOOSE, 'p.abstract')} AND {ask(TIGHT, 'p.title')})",
        "SELECT p.abstract, p.title FROM papers p",
        [LOOSE, TIGHT],
        ("where", ("not", ("and", 0, 1))),
    ),
    written(
        "nested",
        f"SELECT count(*) FROM papers p WHERE ({ask(LOOSE, 'p.abstract')} OR {ask(HALF, 'p.title')}) AND "
        f"({ask(RARE, 'p.abstract')} OR ({ask('n 20%: {0}', 'p.title')} AND {ask('m 50%: {0}', 'p.venue')}))",
        "SELECT p.abstract, p.title, p.abstract, p.title, p.venue FROM papers p",
        [LOOSE, HALF, RARE, "n 20%: {0}", "m 50%: {0}"],
        ("where", ("or", 0, 1), ("or", 2, ("and", 3, 4))),
    ),
    written(
        "negations",
        f"SELECT count(*) FROM reviews r WHERE NOT {ask(TIGHT, 'r.text')} AND NOT {ask('n 80%: {0}', 'r.text')}",
        "SELECT r.text, r.text FROM reviews r",
        [TIGHT, "n 80%: {0}"],
        ("where", ("not", 0), ("not", 1)),
    ),
]

_BLOCKS = [
    written(
        "a filter in a CTE, another above",
        f"WITH w AS (SELECT * FROM papers WHERE {ask(LOOSE, 'abstract')}) SELECT count(*) FROM w JOIN authors a ON "
        f"a.id = w.author_id WHERE w.year > 2015 AND {ask('bio 20%: {0}', 'a.bio')}",
        "SELECT p.abstract, a.bio FROM papers p JOIN authors a ON a.id = p.author_id WHERE p.year > 2015",
        [LOOSE, "bio 20%: {0}"],
        ("where", 0, 1),
    ),
    written(
        "a filter in a derived table",
        f"SELECT count(*) FROM (SELECT id, author_id, year FROM papers WHERE {ask(HALF, 'abstract')}) w WHERE w.year = 1995",
        "SELECT p.abstract FROM papers p WHERE p.year = 1995",
        [HALF],
        ("where", 0),
    ),
    written(
        "under DISTINCT",
        f"SELECT count(*) FROM (SELECT DISTINCT venue, year FROM papers WHERE {ask(HALF, 'abstract')}) w WHERE w.year = 1995",
        "SELECT p.abstract FROM papers p WHERE p.year = 1995",
        [HALF],
        ("where", 0),
    ),
    written(
        "under GROUP BY",
        f"SELECT * FROM (SELECT venue, count(*) AS n FROM papers WHERE {ask(HALF, 'abstract')} GROUP BY venue) w "
        "WHERE w.venue = 'venue 3'",
        "SELECT p.abstract FROM papers p WHERE p.venue = 'venue 3'",
        [HALF],
        ("where", 0),
    ),
    written(
        "under GROUP BY, joined",
        f"SELECT count(*) FROM (SELECT author_id, count(*) AS n FROM papers WHERE {ask(HALF, 'abstract')} "
        "GROUP BY author_id) w JOIN authors a ON a.id = w.author_id WHERE a.country = 'country 3'",
        "SELECT p.abstract FROM papers p JOIN authors a ON a.id = p.author_id WHERE a.country = 'country 3'",
        [HALF],
        ("where", 0),
    ),
    written(
        "branches of a UNION",
        f"SELECT count(*) FROM (SELECT id, stars FROM reviews WHERE {ask(HALF, 'text')} UNION ALL SELECT id, stars "
        f"FROM reviews WHERE {ask('u 30%: {0}', 'text')}) w WHERE w.stars = 1",
        "SELECT r.text, r.text FROM reviews r WHERE r.stars = 1",
        [HALF, "u 30%: {0}"],
        ("each", 0, 1),
    ),
    written(
        "an answer above a window",
        f"SELECT count(*) FROM (SELECT text, row_number() OVER (PARTITION BY product_id ORDER BY posted, id) AS n FROM "
        f"reviews) w WHERE {ask(HALF, 'w.text')} AND w.n = 1",
        "SELECT text FROM (SELECT text, row_number() OVER (PARTITION BY product_id ORDER BY posted, id) AS n FROM "
        "reviews) WHERE n = 1",
        [HALF],
        ("where", 0),
    ),
    written(
        "IN a filtered list",
        f"SELECT count(*) FROM papers p WHERE p.author_id IN (SELECT id FROM authors a WHERE {ask('bio 20%: {0}', 'a.bio')}"
        f" AND a.country = 'country 3') AND {ask(HALF, 'p.abstract')}",
        "SELECT a.bio, p.abstract FROM papers p JOIN authors a ON a.id = p.author_id WHERE a.country = 'country 3'",
        ["bio 20%: {0}", HALF],
        ("where", 0, 1),
    ),
    written(
        "one question in two clauses",
        f"SELECT {ask(HALF, 'p.abstract')}, count(*) FROM papers p WHERE {ask(HALF, 'p.abstract')} OR p.year > 2010 "
        f"GROUP BY ALL",
        "SELECT p.abstract FROM papers p",
        [HALF],
        ("where", 0),
    ),
    written(
        "one question in two CTEs",
        f"WITH a AS (SELECT id FROM papers WHERE {ask(HALF, 'abstract')}), b AS (SELECT id FROM papers WHERE "
        f"{ask(HALF, 'abstract')} AND year > 2000) SELECT count(*) FROM a, b WHERE a.id = b.id",
        "SELECT p.abstract FROM papers p WHERE p.year > 2000",
        [HALF],
        ("where", 0),
    ),
    written(
        "an answer about groups",
        f"SELECT venue FROM papers WHERE year > 2000 GROUP BY venue HAVING count(*) > 40 AND {ask(HALF, 'venue')}",
        "SELECT venue FROM papers WHERE year > 2000 GROUP BY venue HAVING count(*) > 40",
        [HALF],
        ("where", 0),
    ),
    written(
        "a branch of CASE",
        f"SELECT count(*) FROM reviews r WHERE CASE WHEN r.stars = 5 THEN {ask(HALF, 'r.text')} WHEN r.stars = 1 THEN "
        f"{ask(TIGHT, 'r.text')} ELSE false END",
        "SELECT CASE WHEN r.stars = 5 THEN r.text END, CASE WHEN r.stars = 1 THEN r.text END FROM reviews r",
        [HALF, TIGHT],
        ("each", 0, 1),
    ),
    written(
        "a left join's condition",
        f"SELECT count(*) FROM authors a LEFT JOIN papers p ON p.author_id = a.id AND p.year = 2001 AND "
        f"{ask(HALF, 'p.abstract')} WHERE a.country = 'country 3'",
        "SELECT p.abstract FROM papers p JOIN authors a ON a.id = p.author_id WHERE p.year = 2001 AND "
        "a.country = 'country 3'",
        [HALF],
        ("where", 0),
    ),
]

QUERIES = [*_SIMPLE, *_JOINS, *_TREES, *_BLOCKS]
