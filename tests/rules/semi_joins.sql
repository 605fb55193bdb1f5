-- EXISTS and IN that look at outer rows, with questions in them, become semi and anti joins.

-- EXISTS
SELECT t.id FROM t WHERE EXISTS (SELECT 1 FROM r WHERE r.k = t.k AND __ai(1, r.w));
SELECT "t"."id" AS "id" FROM t SEMI JOIN r AS "e" ON ("e"."k" = "t"."k") AND __AI(1, "e"."w");

-- NOT EXISTS, with a question about both sides and names of their own
SELECT id FROM t WHERE NOT EXISTS (SELECT * FROM r WHERE w = t.s AND __ai(1, w, t.s)) AND id > 1;
SELECT "t"."id" AS "id" FROM t ANTI JOIN r AS "e" ON ("e"."w" = "t"."s") AND __AI(1, "e"."w", "t"."s") WHERE ("t"."id" > 1);

-- IN
SELECT id FROM t WHERE k IN (SELECT k FROM r WHERE __ai(1, w) AND r.id < t.id);
SELECT "t"."id" AS "id" FROM t SEMI JOIN r AS "e" ON (("e"."k") = ("t"."k")) AND __AI(1, "e"."w") AND ("e"."id" < "t"."id");

-- NOT IN is NULL where a row of the query is: it stays
SELECT id FROM t WHERE NOT k IN (SELECT k FROM r WHERE __ai(1, w) AND r.id < t.id);
SELECT "t"."id" AS "id" FROM t WHERE NOT "t"."k" IN (SELECT k FROM r WHERE __AI(1, w) AND r.id < t.id);

-- A query that looks at no outer row has a stage of its own
SELECT id FROM t WHERE k IN (SELECT k FROM r WHERE __ai(1, w));
SELECT "t"."id" AS "id" FROM t WHERE "t"."k" IN (SELECT k FROM r WHERE __AI(1, w));

-- One that counts rows stays
SELECT id FROM t WHERE k IN (SELECT k FROM r WHERE __ai(1, w) AND r.id < t.id LIMIT 1);
SELECT "t"."id" AS "id" FROM t WHERE "t"."k" IN (SELECT k FROM r WHERE __AI(1, w) AND r.id < t.id LIMIT 1);
