-- Conditions of the outer query go into subqueries with questions. The outer query keeps them.

-- Through DISTINCT
SELECT w.k FROM (SELECT DISTINCT t.k FROM t WHERE __ai(1, t.s)) AS w WHERE w.k > 1;
SELECT "w"."k" AS "k" FROM (SELECT DISTINCT "t"."k" AS "k" FROM t WHERE __AI(1, "t"."s") AND "t"."k" > 1) AS w WHERE "w"."k" > 1;

-- Through GROUP BY where it names what is grouped by
SELECT w.k, w.n FROM (SELECT t.k, count(*) AS n FROM t WHERE __ai(1, t.s) GROUP BY t.k) AS w WHERE w.k > 1 AND w.n > 0;
SELECT "w"."k" AS "k", "w"."n" AS "n" FROM (SELECT "t"."k" AS "k", COUNT(*) AS n FROM t WHERE __AI(1, "t"."s") AND "t"."k" > 1 GROUP BY "t"."k") AS w WHERE "w"."k" > 1 AND "w"."n" > 0;

-- A join with a condition becomes a semi-join below
SELECT w.k, w.n FROM (SELECT t.k, count(*) AS n FROM t WHERE __ai(1, t.s) GROUP BY t.k) AS w JOIN r ON r.k = w.k WHERE r.id > 1;
SELECT "w"."k" AS "k", "w"."n" AS "n" FROM (SELECT "t"."k" AS "k", COUNT(*) AS n FROM t WHERE __AI(1, "t"."s") AND "t"."k" IN (SELECT "r"."k" FROM r WHERE "r"."id" > 1) GROUP BY "t"."k") AS w JOIN r ON "r"."k" = "w"."k" WHERE "r"."id" > 1;

-- Into every branch of a set operation
SELECT w.id FROM (SELECT t.id FROM t WHERE __ai(1, t.s) UNION ALL SELECT r.k FROM r WHERE __ai(2, r.w)) AS w WHERE w.id > 1;
SELECT "w"."id" AS "id" FROM (SELECT "t"."id" AS "id" FROM t WHERE __AI(1, "t"."s") AND "t"."id" > 1 UNION ALL SELECT "r"."k" AS "k" FROM r WHERE __AI(2, "r"."w") AND "r"."k" > 1) AS w WHERE "w"."id" > 1;

-- Not where branches differ in type
SELECT w.x FROM (SELECT t.id AS x FROM t WHERE __ai(1, t.s) UNION ALL SELECT r.w FROM r WHERE __ai(2, r.w)) AS w WHERE w.x > '1';
SELECT "w"."x" AS "x" FROM (SELECT t.id AS x FROM t WHERE __AI(1, t.s) UNION ALL SELECT r.w FROM r WHERE __AI(2, r.w)) AS w WHERE "w"."x" > '1';

-- Through windows only by what they are partitioned by
SELECT w.id FROM (SELECT t.id, t.k, count(*) OVER (PARTITION BY t.k) AS n FROM t WHERE __ai(1, t.s)) AS w WHERE w.k = 1 AND w.id > 0;
SELECT "w"."id" AS "id" FROM (SELECT "t"."id" AS "id", "t"."k" AS "k", COUNT(*) OVER (PARTITION BY "t"."k") AS n FROM t WHERE __AI(1, "t"."s") AND "t"."k" = 1) AS w WHERE "w"."k" = 1 AND "w"."id" > 0;

-- Not below a LIMIT
SELECT w.id FROM (SELECT t.id FROM t WHERE __ai(1, t.s) ORDER BY t.id LIMIT 2) AS w WHERE w.id > 1;
SELECT "w"."id" AS "id" FROM (SELECT t.id FROM t WHERE __AI(1, t.s) ORDER BY t.id LIMIT 2) AS w WHERE "w"."id" > 1;

-- Not where a join adds NULLs to the subquery's rows
SELECT r.id FROM r LEFT JOIN (SELECT DISTINCT t.k FROM t WHERE __ai(1, t.s)) AS w ON w.k = r.k WHERE w.k IS NULL;
SELECT "r"."id" AS "id" FROM r LEFT JOIN (SELECT DISTINCT t.k FROM t WHERE __AI(1, t.s)) AS w ON "w"."k" = "r"."k" WHERE "w"."k" IS NULL;
