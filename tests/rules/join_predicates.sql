-- Questions of inner joins move to WHERE. Pairs of a query and what the rule makes of it.

-- Only the question moves
SELECT t.id FROM t JOIN r ON t.k = r.k AND __ai(1, t.s, r.w);
SELECT t.id FROM t JOIN r ON (t.k = r.k) WHERE __AI(1, t.s, r.w);

-- Nothing is left of ON
SELECT t.id, r.id FROM t JOIN r ON __ai(1, t.s, r.w);
SELECT t.id, r.id FROM t CROSS JOIN r WHERE __AI(1, t.s, r.w);

-- Behind what WHERE says
SELECT t.id FROM t JOIN r ON __ai(1, t.s) AND t.k = r.k WHERE r.id > 1 OR r.id IS NULL;
SELECT t.id FROM t JOIN r ON (t.k = r.k) WHERE (r.id > 1 OR r.id IS NULL) AND __AI(1, t.s);

-- A LEFT JOIN keeps its ON
SELECT t.id, r.id FROM t LEFT JOIN r ON __ai(1, t.s, r.w);
SELECT t.id, r.id FROM t LEFT JOIN r ON __AI(1, t.s, r.w);

-- An inner join before a RIGHT JOIN does too
SELECT t.id, r.id, b.id FROM t JOIN r ON t.k = r.k AND __ai(1, t.s) RIGHT JOIN r AS b ON b.id = r.id;
SELECT t.id, r.id, b.id FROM t JOIN r ON t.k = r.k AND __AI(1, t.s) RIGHT JOIN r AS b ON b.id = r.id;

-- One after it does not
SELECT t.id, r.id, b.id FROM t RIGHT JOIN r ON t.k = r.k JOIN r AS b ON b.id = r.id AND __ai(1, b.w);
SELECT t.id, r.id, b.id FROM t RIGHT JOIN r ON t.k = r.k JOIN r AS b ON (b.id = r.id) WHERE __AI(1, b.w);
