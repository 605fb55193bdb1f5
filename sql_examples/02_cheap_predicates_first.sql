-- 02. Cheap predicates first.
--
-- A question to a model costs a hundred thousand times what a comparison costs. SQLuice therefore lifts AI
-- expressions out of the query, lets DuckDB do everything else, and asks only about the rows that are left.

CREATE TABLE reviews AS FROM 'engine/data/reviews.csv';
CREATE TABLE products AS FROM 'engine/data/products.csv';

-- How many rows do the join, the department, the price and the date leave? Of 176 reviews:

SELECT count(*) AS candidates
FROM reviews r JOIN products p USING (product_id)
WHERE p.department = 'kitchen' AND p.price < 100 AND r.posted >= DATE '2025-06-01';

-- The same conditions with a question. Where the AI_FILTER stands in the WHERE makes no difference.

SELECT p.name, r.review_id, r.sentiment
FROM reviews r JOIN products p USING (product_id)
WHERE AI_FILTER(PROMPT('Is this review positive? {0}', r.text))
  AND p.department = 'kitchen' AND p.price < 100 AND r.posted >= DATE '2025-06-01'
ORDER BY r.review_id;

-- The trace says how many questions that took: as many as there were candidates, not 176.

SELECT rows_in, distinct_inputs, calls FROM ai.ops ORDER BY run_id DESC LIMIT 1;

-- EXPLAIN shows the plan, and EXPLAIN ANALYZE runs the query and adds rows, calls and seconds.

EXPLAIN ANALYZE
SELECT count(*)
FROM reviews r JOIN products p USING (product_id)
WHERE AI_FILTER(PROMPT('Is this review positive? {0}', r.text))
  AND p.department = 'kitchen' AND p.price < 100 AND r.posted >= DATE '2025-06-01';

-- Equal inputs are asked once: ten copies of a review are one question.

SELECT count(*) AS rows, count(*) FILTER (AI_FILTER(PROMPT('Is this review positive? {0}', text))) AS positive
FROM reviews, range(10)
WHERE review_id = 1;

SELECT rows_in, distinct_inputs FROM ai.ops ORDER BY run_id DESC LIMIT 1;

-- And a LIMIT stops asking as soon as it is satisfied.

SELECT count(*) AS found
FROM (SELECT 1 FROM reviews WHERE AI_FILTER(PROMPT('Is this review positive? {0}', text)) LIMIT 3);
