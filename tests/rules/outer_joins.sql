-- Questions in the ON of other joins. Pairs of a query and what the rule makes of it.

-- LEFT
SELECT t.id, r.id AS r FROM t LEFT JOIN r ON t.k = r.k AND __ai(1, t.s, r.w);
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."k", "t"."s" FROM t) AS q(__c0, __c1, __c2)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."id", "r"."k", "r"."w" FROM r) AS q(__c0, __c1, __c2)) SELECT "t1"."__c0" AS "id", "t2"."__c0" AS r FROM t1 LEFT JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 JOIN t2 ON ("t1"."__c1" = "t2"."__c1") WHERE __AI(1, "t1"."__c2", "t2"."__c2")) AS "m3" ON "t1"."__ord" = "m3"."lo" LEFT JOIN t2 ON "t2"."__ord" = "m3"."ro";

-- RIGHT
SELECT t.id, r.id AS r FROM t RIGHT JOIN r ON __ai(1, t.s, r.w);
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."s" FROM t) AS q(__c0, __c1)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."id", "r"."w" FROM r) AS q(__c0, __c1)) SELECT "t1"."__c0" AS "id", "t2"."__c0" AS r FROM t1 JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 CROSS JOIN t2 WHERE __AI(1, "t1"."__c1", "t2"."__c1")) AS "m3" ON "t1"."__ord" = "m3"."lo" RIGHT JOIN t2 ON "t2"."__ord" = "m3"."ro";

-- FULL
SELECT t.id, r.id AS r FROM t FULL JOIN r ON t.k = r.k AND __ai(1, r.w);
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."k" FROM t) AS q(__c0, __c1)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."id", "r"."k", "r"."w" FROM r) AS q(__c0, __c1, __c2)) SELECT "t1"."__c0" AS "id", "t2"."__c0" AS r FROM t1 LEFT JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 JOIN t2 ON ("t1"."__c1" = "t2"."__c1") WHERE __AI(1, "t2"."__c2")) AS "m3" ON "t1"."__ord" = "m3"."lo" FULL JOIN t2 ON "t2"."__ord" = "m3"."ro";

-- SEMI and ANTI
SELECT t.id FROM t SEMI JOIN r ON __ai(1, t.s, r.w);
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."s" FROM t) AS q(__c0, __c1)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."w" FROM r) AS q(__c0)) SELECT "t1"."__c0" AS "id" FROM t1 SEMI JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 CROSS JOIN t2 WHERE __AI(1, "t1"."__c1", "t2"."__c0")) AS "m3" ON "t1"."__ord" = "m3"."lo";

SELECT t.id FROM t ANTI JOIN r ON t.k = r.k AND __ai(1, t.s, r.w);
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."k", "t"."s" FROM t) AS q(__c0, __c1, __c2)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."k", "r"."w" FROM r) AS q(__c0, __c1)) SELECT "t1"."__c0" AS "id" FROM t1 ANTI JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 JOIN t2 ON ("t1"."__c1" = "t2"."__c0") WHERE __AI(1, "t1"."__c2", "t2"."__c1")) AS "m3" ON "t1"."__ord" = "m3"."lo";

-- Cheap conditions on one side go before the questions
SELECT t.id, r.id AS r FROM t LEFT JOIN r ON __ai(1, t.s, r.w) WHERE t.id > 1 AND r.id > 0;
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."s" FROM t WHERE "t"."id" > 1) AS q(__c0, __c1)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."id", "r"."w" FROM r) AS q(__c0, __c1)) SELECT "t1"."__c0" AS "id", "t2"."__c0" AS r FROM t1 LEFT JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 CROSS JOIN t2 WHERE __AI(1, "t1"."__c1", "t2"."__c1")) AS "m3" ON "t1"."__ord" = "m3"."lo" LEFT JOIN t2 ON "t2"."__ord" = "m3"."ro" WHERE "t1"."__c0" > 1 AND "t2"."__c0" > 0;

-- Not where a later join adds rows
SELECT t.id, r.id AS r, b.id AS b FROM t LEFT JOIN r ON __ai(1, t.s, r.w) RIGHT JOIN r AS b ON b.id = t.id WHERE t.id > 1;
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."s" FROM t) AS q(__c0, __c1)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."id", "r"."w" FROM r) AS q(__c0, __c1)) SELECT "t1"."__c0" AS "id", "t2"."__c0" AS r, "b"."id" AS b FROM t1 LEFT JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 CROSS JOIN t2 WHERE __AI(1, "t1"."__c1", "t2"."__c1")) AS "m3" ON "t1"."__ord" = "m3"."lo" LEFT JOIN t2 ON "t2"."__ord" = "m3"."ro" RIGHT JOIN r AS b ON "b"."id" = "t1"."__c0" WHERE "t1"."__c0" > 1;

-- An inner join before a RIGHT JOIN
SELECT t.id, r.id AS r, b.id AS b FROM t JOIN r ON t.k = r.k AND __ai(1, t.s) RIGHT JOIN r AS b ON b.id = r.id;
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."k", "t"."s" FROM t) AS q(__c0, __c1, __c2)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."id", "r"."k" FROM r) AS q(__c0, __c1)) SELECT "t1"."__c0" AS "id", "t2"."__c0" AS r, "b"."id" AS b FROM t1 JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 JOIN t2 ON ("t1"."__c1" = "t2"."__c1") WHERE __AI(1, "t1"."__c2")) AS "m3" ON "t1"."__ord" = "m3"."lo" JOIN t2 ON "t2"."__ord" = "m3"."ro" RIGHT JOIN r AS b ON "b"."id" = "t2"."__c0";

-- Two of them
SELECT t.id, b.id AS b FROM t SEMI JOIN r ON __ai(1, t.s, r.w) FULL JOIN r AS b ON __ai(2, t.s, b.w);
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."s" FROM t) AS q(__c0, __c1)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."w" FROM r) AS q(__c0)), t4 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t1"."__c0", "t1"."__c1" FROM t1 SEMI JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 CROSS JOIN t2 WHERE __AI(1, "t1"."__c1", "t2"."__c0")) AS "m3" ON "t1"."__ord" = "m3"."lo") AS q(__c0, __c1)), t5 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "b"."id", "b"."w" FROM r AS b) AS q(__c0, __c1)) SELECT "t4"."__c0" AS "id", "t5"."__c0" AS b FROM t4 LEFT JOIN (SELECT "t4"."__ord" AS "lo", "t5"."__ord" AS "ro" FROM t4 CROSS JOIN t5 WHERE __AI(2, "t4"."__c1", "t5"."__c1")) AS "m6" ON "t4"."__ord" = "m6"."lo" FULL JOIN t5 ON "t5"."__ord" = "m6"."ro";

-- A comma binds less tightly
SELECT x.id AS x, t.id, r.id AS r FROM r AS x, t RIGHT JOIN r ON __ai(1, t.s, r.w);
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."s" FROM t) AS q(__c0, __c1)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."id", "r"."w" FROM r) AS q(__c0, __c1)) SELECT "x"."id" AS x, "t1"."__c0" AS "id", "t2"."__c0" AS r FROM r AS x, t1 JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 CROSS JOIN t2 WHERE __AI(1, "t1"."__c1", "t2"."__c1")) AS "m3" ON "t1"."__ord" = "m3"."lo" RIGHT JOIN t2 ON "t2"."__ord" = "m3"."ro";

-- Empty sides
SELECT t.id, e.id AS e FROM t LEFT JOIN e ON __ai(1, t.s, e.w);
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."s" FROM t) AS q(__c0, __c1)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "e"."id", "e"."w" FROM e) AS q(__c0, __c1)) SELECT "t1"."__c0" AS "id", "t2"."__c0" AS e FROM t1 LEFT JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 CROSS JOIN t2 WHERE __AI(1, "t1"."__c1", "t2"."__c1")) AS "m3" ON "t1"."__ord" = "m3"."lo" LEFT JOIN t2 ON "t2"."__ord" = "m3"."ro";

-- Stars and order
SELECT * FROM t LEFT JOIN r ON __ai(1, t.s, r.w) ORDER BY t.id, r.id;
WITH t1 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "t"."id", "t"."s", "t"."k", "t"."u" FROM t) AS q(__c0, __c1, __c2, __c3)), t2 AS MATERIALIZED (SELECT ROW_NUMBER() OVER () AS __ord, q.* FROM (SELECT "r"."id", "r"."w", "r"."k" FROM r) AS q(__c0, __c1, __c2)) SELECT "t1"."__c0" AS "id", "t1"."__c1" AS "s", "t1"."__c2" AS "k", "t1"."__c3" AS "u", "t2"."__c0" AS "id", "t2"."__c1" AS "w", "t2"."__c2" AS "k" FROM t1 LEFT JOIN (SELECT "t1"."__ord" AS "lo", "t2"."__ord" AS "ro" FROM t1 CROSS JOIN t2 WHERE __AI(1, "t1"."__c1", "t2"."__c1")) AS "m3" ON "t1"."__ord" = "m3"."lo" LEFT JOIN t2 ON "t2"."__ord" = "m3"."ro" ORDER BY "t1"."__c0", "t2"."__c0";
