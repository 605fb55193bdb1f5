-- 13. A hard cap on what a question may cost.
--
-- A budget names calls, money or time. Where it does not do for every row, the question becomes a cascade: a classifier
-- on embeddings learns from the model's answers and decides the rest. The label says that nothing is proven.

CREATE TABLE reviews AS FROM 'engine/data/reviews.csv';

SET ai_cache = 'off';
SET ai_budget = '40 calls';

CREATE TABLE answers AS
SELECT text, AI_FILTER(PROMPT('Is this review positive? {0}', text)) AS positive FROM reviews;

SELECT count(*) AS rows, count(positive) AS answered FROM answers;

SELECT calls, label FROM ai.runs WHERE calls > 0 ORDER BY started DESC LIMIT 1;

SELECT tier, reason, count(*) AS inputs
FROM ai.decisions
WHERE run_id = (SELECT run_id FROM ai.runs WHERE calls > 0 ORDER BY started DESC LIMIT 1)
GROUP BY ALL
ORDER BY tier, reason;

-- Questions without a cascade are asked in order; what the budget leaves is NULL.

SET ai_budget = '3 calls';

SELECT count(*) AS rows, count(AI_SCORE(PROMPT('Is this review positive? {0}', text))) AS answered
FROM reviews
WHERE product_id = 22;

-- Without a budget every row is answered.

RESET ai_budget;

SELECT count(*) AS rows, count(AI_SCORE(PROMPT('Is this review positive? {0}', text))) AS answered
FROM reviews
WHERE product_id = 22;
