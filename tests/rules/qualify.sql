-- Every column gets the name of its FROM item. Pairs of a query and what the rule makes of it.

-- Columns of one item
SELECT s, w FROM t JOIN r ON t.k = r.k WHERE w IS NOT NULL;
SELECT "t"."s" AS "s", "r"."w" AS "w" FROM t JOIN r ON "t"."k" = "r"."k" WHERE NOT "r"."w" IS NULL;

-- Fields of structs
SELECT u.f, t.u.n AS n FROM t WHERE u.n > 1;
SELECT "t"."u"."f" AS "f", "t"."u"."n" AS n FROM t WHERE "t"."u"."n" > 1;

-- A name in ON sees the items so far
SELECT count(*) AS n FROM t JOIN r ON s = w JOIN t AS t2 ON t2.s = w;
SELECT COUNT(*) AS n FROM t JOIN r ON "t"."s" = "r"."w" JOIN t AS t2 ON "t2"."s" = "r"."w";

-- The right side of a semi join is seen in its ON only
SELECT id FROM t SEMI JOIN r ON s = w AND r.id < 9 WHERE k > 0;
SELECT "t"."id" AS "id" FROM t SEMI JOIN r ON "t"."s" = "r"."w" AND "r"."id" < 9 WHERE "t"."k" > 0;

-- Merged columns stay bare
SELECT k, s FROM t JOIN r USING (k);
SELECT k AS "k", "t"."s" AS "s" FROM t JOIN r USING (k);

-- Whole rows stay bare
SELECT t FROM t WHERE s = 'red';
SELECT t AS "t" FROM t WHERE "t"."s" = 'red';

-- ORDER BY and DISTINCT ON name outputs first
SELECT DISTINCT ON (s) s AS id, id AS s FROM t ORDER BY s, id + 0;
SELECT DISTINCT ON (s) "t"."s" AS id, "t"."id" AS s FROM t ORDER BY s, "t"."id" + 0;

-- GROUP BY names columns first
SELECT k AS s, count(*) AS n FROM t GROUP BY k, s ORDER BY 1, 2;
SELECT "t"."k" AS s, COUNT(*) AS n FROM t GROUP BY "t"."k", "t"."s" ORDER BY 1, 2;

-- HAVING: a grouping column, then an output
SELECT k, max(id) AS s FROM t GROUP BY k HAVING k > 0 AND s > 0 AND max(s) > 'a';
SELECT "t"."k" AS "k", MAX("t"."id") AS s FROM t GROUP BY "t"."k" HAVING "t"."k" > 0 AND s > 0 AND MAX("t"."s") > 'a';

-- Stars, and what they leave out
SELECT * EXCLUDE (k) REPLACE (upper(s) AS s) FROM t;
SELECT * EXCLUDE (k) REPLACE (UPPER("t"."s") AS s) FROM t;

-- Methods
SELECT s.upper() AS big FROM t;
SELECT ("t"."s").upper() AS big FROM t;

-- Names of lambdas and comprehensions
SELECT list_transform([s], lambda x: concat(x, w)) AS l, [concat(x, s) FOR x IN [w]] AS m FROM t, r WHERE w IS NOT NULL;
SELECT LIST_TRANSFORM(["t"."s"], LAMBDA x : CONCAT(x, "r"."w")) AS l, [CONCAT(x, "t"."s") FOR x IN ["r"."w"]] AS m FROM t, r WHERE NOT "r"."w" IS NULL;
