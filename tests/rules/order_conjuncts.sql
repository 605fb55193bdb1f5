-- Which conjunct, and which arm inside one, is decided first. Calls cost the same here and every answer is foreseen.

-- Fewer distinct inputs for the same rows
SELECT id FROM t WHERE __ai(1, t.id) AND __ai(4, t.k);
SELECT id FROM t WHERE __AI(4, t.k) AND __AI(1, t.id);

-- A question that few pass saves the others
SELECT id FROM t WHERE __ai(1, t.id) AND __ai(4, t.s) AND __ai(3, t.k);
SELECT id FROM t WHERE __AI(3, t.k) AND __AI(1, t.id) AND __AI(4, t.s);

-- The written order stays where nothing is gained
SELECT id FROM t WHERE __ai(1, t.s) AND __ai(1, t.s);
SELECT id FROM t WHERE __AI(1, t.s) AND __AI(1, t.s);

-- Arms of an OR
SELECT id FROM t WHERE __ai(1, t.id) OR __ai(5, t.k);
SELECT id FROM t WHERE (__AI(5, t.k) OR __AI(1, t.id));

-- An arm whose question computes something does not move
SELECT id FROM t WHERE __ai(1, t.id) OR __ai(5, t.k + 1);
SELECT id FROM t WHERE (__AI(1, t.id) OR __AI(5, t.k + 1));
