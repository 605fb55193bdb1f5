-- What a correlated query asks about the rows of one FROM item is asked in that item.

-- A conjunct of a scalar query, asked about the rows that meet an outer one
SELECT id, (SELECT count(*) FROM r WHERE r.k = t.k AND __ai(1, r.w)) AS n FROM t WHERE id > 1;
SELECT "t"."id" AS "id", (SELECT COUNT(*) FROM (SELECT * FROM r WHERE EXISTS(SELECT 1 FROM t WHERE ("r"."k" = t.k) AND ("t"."id" > 1)) AND __AI(1, "r"."w")) AS "r" WHERE ("r"."k" = t.k)) AS n FROM t WHERE "t"."id" > 1;

-- A question elsewhere
SELECT id, (SELECT max(__ai(1, w)) FROM r WHERE r.k = t.k AND w > 'a') AS n FROM t;
SELECT "t"."id" AS "id", (SELECT MAX("r"."q1") FROM (SELECT *, __AI(1, "r"."w") AS "q1" FROM r WHERE ("r"."w" > 'a') AND EXISTS(SELECT 1 FROM t WHERE ("r"."k" = t.k))) AS "r" WHERE ("r"."k" = t.k)) AS n FROM t;

-- LATERAL looks at the FROM items before it
SELECT t.id, x.n FROM t, LATERAL (SELECT count(*) AS n FROM r WHERE r.k = t.k AND __ai(1, w)) AS x, e WHERE t.id > 1 AND x.n > 0;
SELECT "t"."id" AS "id", "x"."n" AS "n" FROM t, LATERAL (SELECT COUNT(*) AS n FROM (SELECT * FROM r WHERE EXISTS(SELECT 1 FROM t WHERE ("r"."k" = t.k) AND ("t"."id" > 1)) AND __AI(1, "r"."w")) AS "r" WHERE ("r"."k" = t.k)) AS x, e WHERE "t"."id" > 1 AND "x"."n" > 0;

-- NOT IN, and a question about both sides that stays
SELECT id FROM t WHERE NOT k IN (SELECT k FROM r WHERE __ai(1, w) AND r.id < t.id AND __ai(2, w, t.s));
SELECT "t"."id" AS "id" FROM t WHERE NOT "t"."k" IN (SELECT "r"."k" AS "k" FROM (SELECT * FROM r WHERE EXISTS(SELECT 1 FROM t WHERE ("r"."id" < t.id)) AND __AI(1, "r"."w")) AS "r" WHERE ("r"."id" < t.id) AND __AI(2, "r"."w", t.s));

-- Beside an outer join it stays
SELECT id, (SELECT count(*) FROM r LEFT JOIN e ON e.id = r.id WHERE r.k = t.k AND __ai(1, r.w)) AS n FROM t;
SELECT "t"."id" AS "id", (SELECT COUNT(*) FROM r LEFT JOIN e ON "e"."id" = "r"."id" WHERE "r"."k" = t.k AND __AI(1, "r"."w")) AS n FROM t;

-- A star would see the answer: it stays
SELECT t.id, x.* FROM t, LATERAL (SELECT *, __ai(1, w) AS f FROM r WHERE r.k = t.k) AS x;
SELECT "t"."id" AS "id", x.* FROM t, LATERAL (SELECT *, __AI(1, "r"."w") AS f FROM r WHERE "r"."k" = t.k) AS x;

-- Conditions move below stars
SELECT t.id, x.* FROM t, LATERAL (SELECT * FROM r WHERE r.k = t.k AND __ai(1, w)) AS x;
SELECT "t"."id" AS "id", x.* FROM t, LATERAL (SELECT * FROM (SELECT * FROM r WHERE EXISTS(SELECT 1 FROM t WHERE ("r"."k" = t.k)) AND __AI(1, "r"."w")) AS "r" WHERE ("r"."k" = t.k)) AS x;

-- An argument that computes stays
SELECT id, (SELECT count(*) FROM r WHERE r.k = t.k AND __ai(1, upper(w))) AS n FROM t;
SELECT "t"."id" AS "id", (SELECT COUNT(*) FROM r WHERE "r"."k" = t.k AND __AI(1, UPPER("r"."w"))) AS n FROM t;

-- Which rows meet an outer one cannot be said of a query: it stays
SELECT id, (SELECT count(*) FROM r WHERE r.k = t.k AND __ai(1, w)) AS n FROM t, (SELECT 1 AS one) AS z;
SELECT "t"."id" AS "id", (SELECT COUNT(*) FROM r WHERE "r"."k" = t.k AND __AI(1, "r"."w")) AS n FROM t, (SELECT 1 AS one) AS z;

-- Nothing ties it to outer rows but a question
SELECT id, (SELECT count(*) FROM r WHERE __ai(1, w) AND __ai(2, w, t.s)) AS n FROM t;
SELECT "t"."id" AS "id", (SELECT COUNT(*) FROM (SELECT * FROM r WHERE __AI(1, "r"."w")) AS "r" WHERE __AI(2, "r"."w", t.s)) AS n FROM t;

-- A volatile condition stays where it is
SELECT id, (SELECT count(*) FROM r WHERE r.k = t.k AND __ai(1, w) AND random() < 2) AS n FROM t;
SELECT "t"."id" AS "id", (SELECT COUNT(*) FROM (SELECT * FROM r WHERE EXISTS(SELECT 1 FROM t WHERE ("r"."k" = t.k)) AND __AI(1, "r"."w")) AS "r" WHERE ("r"."k" = t.k) AND (RANDOM() < 2)) AS n FROM t;

-- What only some rows are asked stays
SELECT id, (SELECT max(CASE WHEN r.id > t.id THEN __ai(1, w) END) FROM r WHERE r.k = t.k) AS n FROM t;
SELECT "t"."id" AS "id", (SELECT MAX(CASE WHEN "r"."id" > t.id THEN __AI(1, "r"."w") END) FROM r WHERE "r"."k" = t.k) AS n FROM t;

-- WHERE says nothing of the rows that an ON looks at
SELECT t.id, e.id AS e FROM t LEFT JOIN r AS e ON e.id > (SELECT count(*) FROM r WHERE r.k = t.k AND __ai(1, r.w)) WHERE t.id > 1;
SELECT "t"."id" AS "id", "e"."id" AS e FROM t LEFT JOIN r AS e ON "e"."id" > (SELECT COUNT(*) FROM (SELECT * FROM r WHERE EXISTS(SELECT 1 FROM t WHERE ("r"."k" = t.k)) AND __AI(1, "r"."w")) AS "r" WHERE ("r"."k" = t.k)) WHERE "t"."id" > 1;
