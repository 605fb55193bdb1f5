-- CTEs with questions that are used once. Pairs of a query and what the rule makes of it.

-- Used once
WITH g AS (SELECT id, __ai(1, s) AS f FROM t) SELECT id FROM g WHERE f;
SELECT id FROM (SELECT id, __AI(1, s) AS f FROM t) AS "g" WHERE f;

-- With names for its columns, and an alias
WITH g(a, b) AS (SELECT id, __ai(1, s) FROM t) SELECT x.a FROM g AS x WHERE x.b;
SELECT x.a FROM (SELECT id, __AI(1, s) FROM t) AS "x"(a, b) WHERE x.b;

-- Used twice: evaluated once
WITH g AS (SELECT id, __ai(1, s) AS f FROM t) SELECT a.id FROM g AS a JOIN g AS b ON a.id = b.id WHERE b.f;
WITH g AS (SELECT id, __AI(1, s) AS f FROM t) SELECT a.id FROM g AS a JOIN g AS b ON a.id = b.id WHERE b.f;

-- Never used
WITH g AS (SELECT __ai(1, s) AS f FROM t) SELECT 1 AS one;
SELECT 1 AS one;

-- MATERIALIZED stays
WITH g AS MATERIALIZED (SELECT id, __ai(1, s) AS f FROM t) SELECT id FROM g;
WITH g AS MATERIALIZED (SELECT id, __AI(1, s) AS f FROM t) SELECT id FROM g;

-- Without a question it stays
WITH g AS (SELECT id FROM t) SELECT id FROM g WHERE __ai(1, id);
WITH g AS (SELECT id FROM t) SELECT id FROM g WHERE __AI(1, id);

-- One inside the other
WITH g AS (SELECT id, __ai(1, s) AS f FROM t), h AS (SELECT id FROM g WHERE f) SELECT id FROM h;
SELECT id FROM (SELECT id FROM (SELECT id, __AI(1, s) AS f FROM t) AS "g" WHERE f) AS "h";

-- A later CTE hides the table that it reads
WITH g AS (SELECT id FROM t WHERE __ai(1, s)), t AS (SELECT 1 AS one) SELECT g.id FROM g, t;
WITH g AS (SELECT id FROM t WHERE __AI(1, s)), t AS (SELECT 1 AS one) SELECT g.id FROM g, t;

-- It reads a table of its own name
WITH t AS (SELECT id FROM t WHERE __ai(1, s)) SELECT id FROM t;
WITH t AS (SELECT id FROM t WHERE __AI(1, s)) SELECT id FROM t;

-- In a scalar subquery it stays
WITH g AS (SELECT __ai(1, s) AS f FROM t) SELECT id, (SELECT count(*) FROM g WHERE f) AS n FROM t;
WITH g AS (SELECT __AI(1, s) AS f FROM t) SELECT id, (SELECT COUNT(*) FROM g WHERE f) AS n FROM t;
