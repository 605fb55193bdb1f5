-- 01. A first filter.
--
-- Run the files in order from the project's folder:
--   sqluice query -f sql_examples/01_first_filter.sql
--
-- The reviews come with the package. Each has a text, and a label that a person gave (`sentiment`).

CREATE TABLE reviews AS FROM 'engine/data/reviews.csv';

SELECT count(*) AS reviews, min(posted) AS first, max(posted) AS last FROM reviews;

-- AI_FILTER is a predicate whose answer comes from a model. PROMPT puts columns into a question: {0} is the
-- first argument after the text. The rest of the WHERE is ordinary SQL, and runs first.

SELECT review_id, sentiment, text
FROM reviews
WHERE product_id = 11
  AND AI_FILTER(PROMPT('Is this review positive? {0}', text))
ORDER BY review_id;

-- It is an expression like any other: here as a column.

SELECT review_id, sentiment, AI_FILTER(PROMPT('Is this review positive? {0}', text)) AS positive
FROM reviews
WHERE product_id = 11
ORDER BY review_id;

-- Two shorter forms: the question and the column apart; and a whole statement that is true or false.

SELECT count(*) AS positive
FROM reviews
WHERE product_id = 11 AND AI_FILTER('Is this review positive?', text);

SELECT AI_FILTER('Is the following review positive? What a wonderful evening, we loved every minute!') AS answer;
