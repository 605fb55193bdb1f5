-- 14. A join of many rows is never asked pair by pair.
--
-- Two lists of 200 and 300 things make 60,000 pairs. EXPLAIN lists the ways to join them, with the calls that each is
-- expected to take; when the query runs, the first answers decide. Nothing is asked here.

CREATE TABLE shop AS SELECT 'lamp no. ' || i AS title FROM range(200) t(i);
CREATE TABLE catalogue AS SELECT 'lamp, model ' || i AS name FROM range(300) t(i);

EXPLAIN SELECT * FROM shop s JOIN catalogue c
  ON AI_FILTER(PROMPT('Are {0} and {1} the same lamp?', s.title, c.name), {'recall': 0.9, 'precision': 0.9});

-- Conditions that DuckDB can decide run first, whatever comes after them: here they leave too few pairs for a strategy.

SELECT count(*) AS pairs FROM shop s JOIN catalogue c
  ON right(s.title, 3) = right(c.name, 3);

-- Under exact mode the oracle is asked about every pair, and too many are refused before the first question.

SET ai_mode = 'exact';
SET ai_max_cross_calls = 10000;

EXPLAIN SELECT * FROM shop s JOIN catalogue c ON AI_FILTER(PROMPT('Are {0} and {1} the same lamp?', s.title, c.name));
