-- Named windows with questions are written out.

-- By its name alone
SELECT id, count(*) OVER w FROM t WINDOW w AS (PARTITION BY __ai(1, s));
SELECT id, count(*) OVER (PARTITION BY __AI(1, s)) FROM t;

-- With a frame of its own, and through another name
SELECT id, sum(id) OVER (v ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n FROM t WINDOW w AS (PARTITION BY __ai(1, s) ORDER BY id), v AS (w);
SELECT id, sum(id) OVER (PARTITION BY __AI(1, s) ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n FROM t;

-- Without a question nothing changes
SELECT id, count(*) OVER w FROM t WHERE __ai(1, s) WINDOW w AS (PARTITION BY k);
SELECT id, count(*) OVER w FROM t WHERE __AI(1, s) WINDOW w AS (PARTITION BY k);
