-- 09. Settings, and where to look afterwards.
--
-- Settings begin with ai_ and live in the session.

SELECT name, value FROM ai_settings() WHERE name IN ('ai_mode', 'ai_on_error', 'ai_seed') ORDER BY name;

SET ai_seed = 7;
SELECT name, value FROM ai_settings() WHERE name = 'ai_seed';
RESET ai_seed;
SELECT name, value FROM ai_settings() WHERE name = 'ai_seed';

-- Exact mode asks the model about every row that the cheap predicates leave.

SET ai_mode = 'exact';

CREATE TABLE reviews AS FROM 'engine/data/reviews.csv';

SELECT count(*) BETWEEN 0 AND 7 AS plausible
FROM reviews
WHERE product_id = 16 AND AI_FILTER(PROMPT('Is this review positive? {0}', text));

-- Every query with an AI expression leaves a trace: one row in ai.runs, one in ai.ops for each operator, one in
-- ai.batches for each model call, one in ai.decisions for each distinct input.

SELECT status FROM ai.runs ORDER BY started DESC LIMIT 1;

SELECT tier, count(*) AS inputs, sum(n_rows) AS rows, bool_and(score BETWEEN 0 AND 1) AS scored
FROM ai.decisions
WHERE run_id = (SELECT run_id FROM ai.runs ORDER BY started DESC LIMIT 1)
GROUP BY tier
ORDER BY tier;
