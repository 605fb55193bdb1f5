-- 12. Nothing is asked twice.
--
-- Answers are cached, by default on disk (SET ai_cache = 'off', 'memory' or 'disk'). The key is the model's
-- revision, the options and the prompt: another model or another wording is another question.

SET ai_cache = 'memory';

CREATE TABLE reviews AS FROM 'engine/data/reviews.csv';

SELECT count(*) AS rows, count(AI_FILTER(PROMPT('Is this review positive? {0}', text))) AS answered
FROM reviews
WHERE product_id = 22;

SELECT tier, count(*) AS inputs
FROM ai.decisions
WHERE run_id = (SELECT run_id FROM ai.runs ORDER BY started DESC LIMIT 1)
GROUP BY tier;

-- The second time, every answer comes from the cache.

SELECT count(*) AS rows, count(AI_FILTER(PROMPT('Is this review positive? {0}', text))) AS answered
FROM reviews
WHERE product_id = 22;

SELECT tier, count(*) AS inputs
FROM ai.decisions
WHERE run_id = (SELECT run_id FROM ai.runs ORDER BY started DESC LIMIT 1)
GROUP BY tier;

-- With one more product only its reviews are new.

SELECT count(*) AS rows, count(AI_FILTER(PROMPT('Is this review positive? {0}', text))) AS answered
FROM reviews
WHERE product_id IN (22, 23);

SELECT tier, count(*) AS inputs
FROM ai.decisions
WHERE run_id = (SELECT run_id FROM ai.runs ORDER BY started DESC LIMIT 1)
GROUP BY tier
ORDER BY tier;
