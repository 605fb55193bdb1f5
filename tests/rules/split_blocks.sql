-- Questions about groups and windows. Pairs of a query and what the rule makes of it.

-- About an aggregate
SELECT k, __ai(1, max(s)) AS f FROM t GROUP BY k;
SELECT "q"."k0" AS "k", __AI(1, "q"."a1") AS f FROM (SELECT "t"."k" AS "k0", MAX("t"."s") AS "a1" FROM t GROUP BY 1) AS "q";

-- About a key, and a constant
SELECT k, __ai(1, k) AS f, __ai(2, 'x') AS g FROM t GROUP BY k;
SELECT "q"."k0" AS "k", __AI(1, "q"."k0") AS f, __AI(2, 'x') AS g FROM (SELECT "t"."k" AS "k0" FROM t GROUP BY 1) AS "q";

-- HAVING: what needs no answer stays below
SELECT k FROM t GROUP BY k HAVING count(*) > 1 AND __ai(1, max(s));
SELECT "q"."k0" AS "k" FROM (SELECT "t"."k" AS "k0", MAX("t"."s") AS "a1" FROM t GROUP BY 1 HAVING (COUNT(*) > 1)) AS "q" WHERE __AI(1, "q"."a1");

-- A HAVING without groups is about one group
SELECT 1 AS one FROM t HAVING __ai(1, 'y');
SELECT 1 AS one FROM (SELECT COUNT(*) AS "one" FROM t) AS "q" WHERE __AI(1, 'y');

-- A question about rows stays
SELECT __ai(1, s) AS f, count(*) FILTER (WHERE __ai(2, s)) AS n FROM t GROUP BY __ai(1, s);
SELECT __AI(1, "t"."s") AS f, COUNT(*) FILTER(WHERE __AI(2, "t"."s")) AS n FROM t GROUP BY __AI(1, "t"."s");

-- Aliases, positions and ALL
SELECT upper(s) AS k, __ai(1, max(id)) AS f FROM t GROUP BY ALL ORDER BY k;
SELECT "q"."k0" AS k, __AI(1, "q"."a1") AS f FROM (SELECT UPPER("t"."s") AS "k0", MAX("t"."id") AS "a1" FROM t GROUP BY 1) AS "q" ORDER BY k;

-- About a window function
SELECT id, __ai(1, lag(s) OVER (ORDER BY id)) AS f FROM t;
SELECT "q"."c1" AS "id", __AI(1, "q"."w0") AS f FROM (SELECT LAG("t"."s") OVER (ORDER BY "t"."id") AS "w0", "t"."id" AS "c1" FROM t) AS "q";

-- QUALIFY decides before the questions do
SELECT id, __ai(1, s) AS f FROM t QUALIFY row_number() OVER (PARTITION BY k ORDER BY id) = 1 AND __ai(2, s);
SELECT "q"."c0" AS "id", __AI(1, "q"."c1") AS f FROM (SELECT "t"."id" AS "c0", "t"."s" AS "c1" FROM t QUALIFY (ROW_NUMBER() OVER (PARTITION BY "t"."k" ORDER BY "t"."id") = 1)) AS "q" WHERE __AI(2, "q"."c1");

-- A window over answers stays
SELECT id, count(*) OVER (PARTITION BY __ai(1, s)) AS n FROM t;
SELECT "t"."id" AS "id", COUNT(*) OVER (PARTITION BY __AI(1, "t"."s")) AS n FROM t;

-- The groups of grouping sets
SELECT k, u.f AS f, __ai(1, max(s)) AS x FROM t GROUP BY ROLLUP (k, f);
SELECT "q"."k0" AS "k", "q"."k1" AS f, __AI(1, "q"."a2") AS x FROM (SELECT "t"."k" AS "k0", "t"."u"."f" AS "k1", MAX("t"."s") AS "a2" FROM t GROUP BY ROLLUP ("t"."k", "t"."u"."f")) AS "q";

-- GROUPING and a key in a set of its own
SELECT k, s, GROUPING(k) AS g, __ai(1, s) AS x FROM t GROUP BY GROUPING SETS ((k, s), (k), (), CUBE (s)) HAVING GROUPING(s) = 0 AND __ai(2, min(s));
SELECT "q"."k0" AS "k", "q"."k1" AS "s", "q"."a2" AS g, __AI(1, "q"."k1") AS x FROM (SELECT "t"."k" AS "k0", "t"."s" AS "k1", GROUPING("t"."k") AS "a2", MIN("t"."s") AS "a3" FROM t GROUP BY GROUPING SETS (("t"."k", "t"."s"), ("t"."k"), (), CUBE ("t"."s")) HAVING (GROUPING("t"."s") = 0)) AS "q" WHERE __AI(2, "q"."a3");

-- Beside plain keys
SELECT k + 1 AS n, s, __ai(1, s, count(*)) AS x FROM t GROUP BY n, CUBE (s);
SELECT "q"."k0" AS n, "q"."k1" AS "s", __AI(1, "q"."k1", "q"."a2") AS x FROM (SELECT "t"."k" + 1 AS "k0", "t"."s" AS "k1", COUNT(*) AS "a2" FROM t GROUP BY "t"."k" + 1, CUBE ("t"."s")) AS "q";
