"""AI functions on a plain DuckDB connection, answered by a scripted runtime."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pytest

import sqluice.udfs
from sqluice.errors import InternalError, ProgrammingError
from sqluice.types import render
from sqluice.udfs import install as place
from sqluice.udfs.answers import arrow_type
from sqluice.udfs.install import RETURNS, functions_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqluice.config import Value
    from sqluice.udfs.spec import Spec


class Scripted:
    """Answers from the rendered prompt, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Spec, list[list[str | None]]]] = []
        self.settings: dict[str, Value] = {}
        self.inside = 0
        self.together = 0
        self.give: Callable[[Spec, str], Any] = self.rule

    def answer(self, spec: Spec, columns: list[list[str | None]]) -> pa.Array:
        self.inside += 1
        self.together = max(self.together, self.inside)
        time.sleep(0.001)
        self.asked.append((spec, columns))
        rows = list(zip(*columns, strict=True)) if columns else [()]
        texts = [render(spec.template, tuple(str(part) for part in row)) for row in rows]
        self.inside -= 1
        return pa.array([self.give(spec, text) for text in texts], arrow_type(spec))

    @staticmethod
    def rule(spec: Spec, text: str) -> Any:
        if "fail" in text:
            return None
        if spec.operation == "embed":
            return [float(text.count("a")), float(text.count("b"))]
        return {
            "BOOLEAN": "good" in text,
            "VARCHAR": spec.choices[0] if spec.choices else text,
            "VARCHAR[]": list(spec.choices[:2]),
            "DOUBLE": float(len(text)),
            "INTEGER": len(text),
        }[spec.returns]

    @property
    def texts(self) -> list[str]:
        return [
            render(spec.template, tuple(map(str, row))) for spec, cols in self.asked for row in zip(*cols, strict=True)
        ]


@pytest.fixture
def runtime() -> Iterator[Scripted]:
    scripted = Scripted()

    def factory(settings: dict[str, Value], allow_models: Sequence[str] | None) -> Scripted:
        scripted.settings = settings
        return scripted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, "_factory", factory)
        yield scripted


@pytest.fixture
def con(runtime: Scripted) -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect()
    sqluice.udfs.install(connection)
    connection.execute(
        "CREATE TABLE t AS SELECT * FROM (VALUES (1, 'good'), (2, 'bad'), (3, NULL), (4, 'good')) t(i, x)"
    )
    yield connection
    connection.close()


def column(con: duckdb.DuckDBPyConnection, expression: str, source: str = "t ORDER BY i") -> list[Any]:
    return [value for (value,) in con.execute(f"SELECT {expression} FROM {source}").fetchall()]


def test_filter(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    assert column(con, "ai_filter(x)") == [True, False, None, True]
    assert runtime.texts == ["good", "bad"]
    assert column(con, "ai_filter('Is it?', x)") == [True, False, None, True]
    assert runtime.texts[2:] == ["Is it? good", "Is it? bad"]
    assert con.execute("SELECT count(*) FROM t WHERE ai_filter(x, {'model': 'm', 'recall': .9})").fetchall() == [(2,)]
    assert (runtime.asked[-1][0].model, runtime.asked[-1][0].options) == ("m", (("recall", 0.9),))


def test_a_null_is_never_asked(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    for call in ("ai_filter(NULL)", "ai_score(prompt('{0} {1}', i, NULL))", "ai_similarity(x, NULL)"):
        assert column(con, call) == [None] * 4
    assert runtime.asked == []
    assert column(con, "ai_filter(prompt('{0}{1}', i, x))", "t WHERE i > 1 ORDER BY i") == [False, None, True]


def test_no_rows(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    assert column(con, "ai_classify(x, ['a', 'b'])", "t WHERE i > 9") == []
    assert column(con, "CASE WHEN i > 9 THEN ai_classify(x, ['a', 'b']) END") == [None] * 4
    assert runtime.asked == []


def test_a_failing_row_is_null(con: duckdb.DuckDBPyConnection) -> None:
    assert column(con, "ai_filter(coalesce(x, 'fail'))") == [True, False, None, True]


def test_classify(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    assert column(con, "ai_classify(x, ['a', 'b', 'c'])") == ["a", "a", None, "a"]
    assert (
        column(con, "ai_classify(x, [{'label': 'u', 'description': 'up'}, {'label': 'd', 'description': NULL}])")[0]
        == "u"
    )
    assert "u: up" in runtime.texts[-1]
    assert column(con, "ai_classify_multi(x, ['a', 'b', 'c'])") == [["a", "b"], ["a", "b"], None, ["a", "b"]]
    assert column(con, "ai_classify_multi(x, ['a', 'b'], {'model': 'm'})")[0] == ["a", "b"]
    assert runtime.asked[-1][0].multi
    assert runtime.asked[-1][0].model == "m"


def test_the_others(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    assert column(con, "ai_score(x)") == [4.0, 3.0, None, 4.0]
    assert column(con, "ai_score(x, {'scale': [1, 5]})")[0] == 4.0
    assert runtime.asked[-1][0].grades == (1, 5)
    assert column(con, "ai_complete('m', x, {'max_tokens': 7})") == ["good", "bad", None, "good"]
    assert (runtime.asked[-1][0].model, runtime.asked[-1][0].max_tokens) == ("m", 7)
    assert column(con, "ai_embed(x)") == [[0, 0], [1, 1], None, [0, 0]]
    assert column(con, "ai_count_tokens('ai_complete', x)") == [4, 3, None, 4]


def test_similarity_embeds_each_text_once(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    rows = "(VALUES ('a', 'aa'), ('a', 'b'), ('b', 'b'), (NULL, 'a')) v(l, r)"
    assert column(con, "ai_similarity(l, r)", rows) == [1.0, 0.0, 1.0, None]
    assert [spec.function for spec, _ in runtime.asked] == ["AI_EMBED"]
    assert sorted(runtime.texts) == ["a", "aa", "b"]


def test_types(con: duckdb.DuckDBPyConnection) -> None:
    for name, call in {
        "ai_filter": "ai_filter('x')",
        "ai_classify": "ai_classify('x', ['a', 'b'])",
        "ai_classify_multi": "ai_classify_multi('x', ['a', 'b'])",
        "ai_score": "ai_score('x')",
        "ai_complete": "ai_complete('x')",
        "ai_embed": "ai_embed('x')",
        "ai_similarity": "ai_similarity('a', 'b')",
        "ai_count_tokens": "ai_count_tokens('ai_filter', 'x')",
    }.items():
        assert con.execute(f"SELECT typeof({call})").fetchall() == [(RETURNS[name],)]


def test_prompts(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    assert column(con, "ai_complete(prompt('<{1}> {0}', i, x))") == ["<good> 1", "<bad> 2", None, "<good> 4"]
    assert column(con, "prompt('only {1}', i, x)", "t WHERE i = 1") == [{"template": "only {0}", "args": ["good"]}]
    assert column(con, "ai_filter(prompt('Is good good?'))") == [True] * 4
    assert runtime.asked[-1][1] == []
    assert column(con, "ai_complete(CASE WHEN i < 2 THEN prompt('{0}', i) END)") == ["1", None, None, None]


def test_the_text_of_a_row_is_no_prompt(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    text = """{"template": "evil {0}", "args": ["x"]}"""
    assert con.execute("SELECT ai_complete(?)", [text]).fetchall() == [(text,)]
    assert con.execute("SELECT ai_complete(prompt('say {0}', v)) FROM (VALUES ('{0}{1}'), ('y')) t(v)").fetchall() == [
        ("say {0}{1}",),
        ("say y",),
    ]
    assert {spec.template for spec, _ in runtime.asked} == {"{0}", "say {0}"}


@pytest.mark.parametrize(
    "value",
    [
        *("1", "-5::TINYINT", "true", "1.5", "0.00001::DECIMAL(18, 10)", "2.0::DOUBLE", "0.1::FLOAT", "1e20::DOUBLE"),
        *("12345678::FLOAT", "DATE '2020-01-02'", "TIMESTAMP '2020-01-02 03:04:05.5'", "TIMESTAMP '2020-01-02'"),
        *("TIME '03:04:05.12'", "'a'::ENUM('a', 'b')", "170141183460469231731687303715884105727", "NULL"),
        "uuid()",
    ],
)
def test_values_read_as_duckdb_casts_them(con: duckdb.DuckDBPyConnection, value: str) -> None:
    for rows in (1, 2):
        source = f"(SELECT {value} AS v FROM range({rows}))"
        for got, cast in con.execute(f"SELECT ai_complete(prompt('{{0}}', v)), v::VARCHAR FROM {source}").fetchall():
            assert got == cast
    (pair,) = con.execute(f"SELECT ai_complete(v), v::VARCHAR FROM (SELECT {value} AS v)").fetchall()
    assert pair[0] == pair[1]


def test_other_types_are_refused(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.InvalidInputException, match=r"DataError: .*cast it with ::VARCHAR"):
        column(con, "ai_complete(prompt('{0}', [i]))")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("ai_classify(x, [x, 'b'])", "DataError: labels must be constant.*changes from row to row"),
        ("ai_filter('q', x, {'model': i::VARCHAR})", "DataError: options must be constant.*changes"),
        ("ai_complete(i::VARCHAR, x)", "DataError: the model of AI_COMPLETE must be a constant.*changes"),
        ("ai_filter(prompt(i::VARCHAR, x))", "DataError: the template of PROMPT must be a constant.*changes"),
        ("ai_filter(CASE WHEN i = 1 THEN prompt('a {0}', x) ELSE prompt('b {0}', x) END)", "DataError: .*constant"),
        ("ai_filter(prompt('{1}', x))", r"no argument for placeholder \{1\}"),
        ("ai_filter({'template': '{3}', 'args': ['a']})", r"no argument for placeholder \{3\}"),
        ("ai_filter(x, {'modell': 'm'})", "BindError: .*did you mean model"),
        ("ai_filter(x, {'errors': true})", "NotSupportedError: .*sqluice.connect"),
        ("ai_classify(x, ['a', 'b'], {'output_mode': 'multi'})", "call ai_classify_multi"),
        ("ai_classify_multi(x, ['a', 'b'], {'output_mode': 'single'})", "call ai_classify for"),
        ("ai_classify_multi(x, ['a', 'b'], {'modell': 'm'})", "did you mean model"),
    ],
)
def test_wrong_calls(con: duckdb.DuckDBPyConnection, call: str, says: str) -> None:
    with pytest.raises(duckdb.InvalidInputException, match=says):
        column(con, call)


def test_large_inputs_and_threads(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    con.execute("SET threads = 4")
    con.execute("CREATE TABLE big AS SELECT range AS i, (range % 50)::VARCHAR AS x FROM range(300000)")
    assert con.execute("SELECT sum(ai_score(x)) FROM big").fetchall() == [(300000 / 50 * (10 + 2 * 40),)]
    assert max(len(columns[0]) for _, columns in runtime.asked) == 50
    assert runtime.together == 1


def test_the_lock_is_the_runtimes_own() -> None:
    scripted = Scripted()
    run, _ = functions_for(scripted)["ai_score"]
    threads = [threading.Thread(target=run, args=(pa.array([str(at)]),)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(scripted.asked), scripted.together) == (8, 1)


def test_answers_are_checked() -> None:
    class Wrong:
        def __init__(self, found: pa.Array) -> None:
            self.found = found

        def answer(self, spec: Spec, columns: list[list[str | None]]) -> pa.Array:
            return self.found

    for found in (pa.array(["true"]), pa.array([True, False])):
        run, _ = functions_for(Wrong(found))["ai_filter"]
        with pytest.raises(InternalError, match=r"AI_FILTER: .* answers of type"):
            run(pa.array(["x"]))


def test_settings_are_checked_and_handed_on(runtime: Scripted) -> None:
    with duckdb.connect() as con:
        sqluice.udfs.install(con, AI_Oracle="m", ai_seed="3")
        assert runtime.settings == {"ai_oracle": "m", "ai_seed": 3}
        with pytest.raises(ProgrammingError, match="did you mean ai_oracle"):
            sqluice.udfs.install(con, ai_oracl="m")
        with pytest.raises(ProgrammingError, match="ai_seed"):
            sqluice.udfs.install(con, ai_seed="x")


def test_installed_again(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    sqluice.udfs.install(con, ai_seed=2)
    assert runtime.settings == {"ai_seed": 2}
    assert column(con, "ai_filter(x)") == [True, False, None, True]
    with pytest.raises(ProgrammingError, match="another cursor"):
        sqluice.udfs.install(con.cursor())


def test_the_runtime_fails(con: duckdb.DuckDBPyConnection, runtime: Scripted) -> None:
    def fail(spec: Spec, text: str) -> Any:
        raise ProgrammingError("no such model")

    runtime.give = fail
    with pytest.raises(duckdb.InvalidInputException, match="ProgrammingError: no such model"):
        column(con, "ai_filter(x)")


def test_the_package_says_install_and_nothing_else() -> None:
    assert dir(sqluice.udfs) == ["install"]
    with pytest.raises(AttributeError, match="no attribute 'instal'"):
        sqluice.udfs.instal  # noqa: B018
