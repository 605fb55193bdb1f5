-- Aliases of outputs become their expressions. Pairs of a query and what the rule makes of it.

-- An alias in WHERE
SELECT id, __ai(1, s) AS f FROM t WHERE f;
SELECT "t"."id" AS "id", __AI(1, "t"."s") AS f FROM t WHERE (__AI(1, "t"."s"));

-- A column of FROM goes first
SELECT __ai(1, s) AS s, id FROM t WHERE s = 'red';
SELECT __AI(1, "t"."s") AS s, "t"."id" AS "id" FROM t WHERE "t"."s" = 'red';

-- Later outputs, and aliases of aliases
SELECT id + 1 AS a, a * 2 AS b, __ai(1, a) AS f FROM t WHERE b > 4 AND f;
SELECT "t"."id" + 1 AS a, ("t"."id" + 1) * 2 AS b, __AI(1, ("t"."id" + 1)) AS f FROM t WHERE (("t"."id" + 1) * 2) > 4 AND (__AI(1, ("t"."id" + 1)));

-- QUALIFY
SELECT id, row_number() OVER (ORDER BY id) AS n FROM t QUALIFY n > 1 AND __ai(1, s);
SELECT "t"."id" AS "id", ROW_NUMBER() OVER (ORDER BY "t"."id") AS n FROM t QUALIFY (ROW_NUMBER() OVER (ORDER BY "t"."id")) > 1 AND __AI(1, "t"."s");

-- GROUP BY; a number would be a position
SELECT __ai(1, s) AS f, 2 AS two, count(*) AS n FROM t GROUP BY f, two;
SELECT __AI(1, "t"."s") AS f, 2 AS two, COUNT(*) AS n FROM t GROUP BY __AI(1, "t"."s"), two;

-- HAVING takes the alias of an aggregate before a column that is not grouped
SELECT max(id) AS k FROM t GROUP BY s HAVING k > 1 AND bool_or(__ai(1, s)) IS NOT NULL;
SELECT MAX("t"."id") AS k FROM t GROUP BY "t"."s" HAVING (MAX("t"."id")) > 1 AND NOT BOOL_OR(CAST(__AI(1, "t"."s") AS BOOLEAN)) IS NULL;

-- ORDER BY keeps the alias
SELECT -id AS id, __ai(1, s) AS f FROM t ORDER BY id, f;
SELECT -"t"."id" AS id, __AI(1, "t"."s") AS f FROM t ORDER BY id, f;
