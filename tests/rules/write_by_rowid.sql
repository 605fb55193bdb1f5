-- UPDATE and DELETE with questions name their rows in a query.

-- The condition of a DELETE
DELETE FROM t WHERE k = 1 AND __ai(1, s);
DELETE FROM t WHERE rowid IN (SELECT rowid FROM t WHERE k = 1 AND __AI(1, s));

-- What was deleted is returned
DELETE FROM t WHERE __ai(1, s) RETURNING id;
DELETE FROM t WHERE rowid IN (SELECT rowid FROM t WHERE __AI(1, s)) RETURNING id;

-- Under an alias
DELETE FROM t AS a WHERE __ai(1, a.s) OR a.id = 3;
DELETE FROM t AS a WHERE rowid IN (SELECT rowid FROM t AS a WHERE __AI(1, a.s) OR a.id = 3);

-- What an UPDATE sets
UPDATE t SET s = CASE WHEN __ai(1, s) THEN 'yes' ELSE 'no' END, k = 9 WHERE id > 1;
UPDATE t SET s = "__w"."v0", k = 9 FROM (SELECT rowid AS "r", CASE WHEN __AI(1, s) THEN 'yes' ELSE 'no' END AS "v0" FROM t WHERE id > 1) AS "__w" WHERE rowid = "__w"."r";

-- Where it sets it
UPDATE t SET k = k + 10 WHERE __ai(2, s);
UPDATE t SET k = k + 10 FROM (SELECT rowid AS "r" FROM t WHERE __AI(2, s)) AS "__w" WHERE rowid = "__w"."r";

-- A query inside the condition is planned as it stands
DELETE FROM t WHERE id IN (SELECT r.id FROM r WHERE __ai(1, r.w));
DELETE FROM t WHERE id IN (SELECT r.id FROM r WHERE __AI(1, r.w));

-- Rows that others are there for
DELETE FROM t USING r WHERE r.k = t.k AND __ai(1, t.s) AND r.id > 1;
DELETE FROM t WHERE rowid IN (SELECT t.rowid FROM t, r WHERE r.k = t.k AND __AI(1, t.s) AND r.id > 1);

-- The same of an alias, with a question about both
DELETE FROM t AS a USING r JOIN e ON e.id = r.id, (SELECT 2 AS z) AS q WHERE r.k = a.k AND __ai(1, a.s, r.w);
DELETE FROM t AS a WHERE rowid IN (SELECT a.rowid FROM t AS a, r JOIN e ON e.id = r.id, (SELECT 2 AS z) AS q WHERE r.k = a.k AND __AI(1, a.s, r.w));

-- What is set looks at the table's own columns
UPDATE t SET k = t.k + 10 FROM r WHERE r.id = t.id AND __ai(1, t.s);
UPDATE t SET k = t.k + 10 FROM (SELECT t.rowid AS "r" FROM t, r WHERE r.id = t.id AND __AI(1, t.s)) AS "__w" WHERE rowid = "__w"."r";

-- What was deleted is returned: left alone
DELETE FROM t USING r WHERE r.id = t.id AND __ai(1, t.s) RETURNING *;
DELETE FROM t USING r WHERE r.id = t.id AND __AI(1, t.s) RETURNING *;

-- Rows of other tables in what is set: left alone
UPDATE t SET s = r.w FROM r WHERE r.id = t.id AND __ai(1, t.s);
UPDATE t SET s = r.w FROM r WHERE r.id = t.id AND __AI(1, t.s);
