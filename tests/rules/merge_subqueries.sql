-- Plain subqueries in FROM. Pairs of a query and what the rule makes of it.

-- Predicates of both levels
SELECT d.f FROM (SELECT id, __ai(1, s) AS f FROM t WHERE k > 0) AS d WHERE d.id > 1;
SELECT __AI(1, "d.t"."s") AS "f" FROM t AS "d.t" WHERE ("d.t"."k" > 0) AND ("d.t"."id" > 1);

-- Stars
SELECT * FROM (SELECT *, __ai(1, s) AS f FROM t) AS d WHERE f;
SELECT "d.t"."id" AS "id", "d.t"."s" AS "s", "d.t"."k" AS "k", "d.t"."u" AS "u", __AI(1, "d.t"."s") AS "f" FROM t AS "d.t" WHERE __AI(1, "d.t"."s");

-- Inside a join; its ON comes after the inner items
SELECT x.id, d.id FROM r AS x JOIN (SELECT t.id, r.w, __ai(1, t.s) AS f FROM t JOIN r ON t.k = r.k) AS d ON d.id = x.id AND d.w = x.w WHERE d.f;
SELECT "x"."id" AS "id", "d.t"."id" AS "id" FROM r AS x CROSS JOIN t AS "d.t" JOIN r AS "d.r" ON ("d.t"."k" = "d.r"."k") AND ("d.t"."id" = "x"."id") AND ("d.r"."w" = "x"."w") WHERE __AI(1, "d.t"."s");

-- A comma inside
SELECT d.id FROM (SELECT t.id, __ai(1, t.s) AS f FROM t, r WHERE t.k = r.k) AS d JOIN r AS x ON x.id = d.id WHERE d.f;
SELECT "d.t"."id" AS "id" FROM t AS "d.t" CROSS JOIN r AS "d.r" JOIN r AS x ON "x"."id" = "d.t"."id" WHERE ("d.t"."k" = "d.r"."k") AND __AI(1, "d.t"."s");

-- Fields of structs
SELECT d.u.n AS n FROM (SELECT u, __ai(1, s) AS f FROM t) AS d WHERE d.f;
SELECT "d.t"."u"."n" AS n FROM t AS "d.t" WHERE __AI(1, "d.t"."s");

-- ORDER BY an output
SELECT d.id AS f, d.f AS id FROM (SELECT id, __ai(1, s) AS f FROM t) AS d ORDER BY f, id;
SELECT "d.t"."id" AS f, __AI(1, "d.t"."s") AS id FROM t AS "d.t" ORDER BY f, id;

-- A constant key stays, since it would be a position
SELECT d.c, count(*) AS n FROM (SELECT 1 AS c, __ai(1, s) AS f FROM t) AS d WHERE d.f GROUP BY d.c;
SELECT "d"."c" AS "c", COUNT(*) AS n FROM (SELECT 1 AS c, __AI(1, "t"."s") AS f FROM t) AS d WHERE "d"."f" GROUP BY "d"."c";

-- Not under an outer join
SELECT x.id, d.f FROM r AS x LEFT JOIN (SELECT id, __ai(1, s) AS f FROM t) AS d ON d.id = x.id;
SELECT "x"."id" AS "id", "d"."f" AS "f" FROM r AS x LEFT JOIN (SELECT id, __AI(1, s) AS f FROM t) AS d ON "d"."id" = "x"."id";

-- Not what groups, limits or repeats
SELECT d.n FROM (SELECT count(*) AS n FROM t WHERE __ai(1, s) GROUP BY k) AS d WHERE d.n > 0;
SELECT "d"."n" AS "n" FROM (SELECT COUNT(*) AS n FROM t WHERE __AI(1, s) GROUP BY k) AS d WHERE "d"."n" > 0;

-- Not where an alias might be taken for a column
SELECT d.id AS k FROM (SELECT id, __ai(1, s) AS f FROM t) AS d WHERE d.f ORDER BY k + 1;
SELECT "d"."id" AS k FROM (SELECT "t"."id" AS "id", __AI(1, "t"."s") AS f FROM t) AS d WHERE "d"."f" ORDER BY k + 1;

-- The same name twice: DuckDB gives the second another
SELECT d.id FROM (SELECT id, s AS f, __ai(1, s) AS f FROM t) AS d;
SELECT "d.t"."id" AS "id" FROM t AS "d.t";
