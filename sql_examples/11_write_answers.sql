-- 11. Keep the answers.
--
-- Answers go into tables and files like any other values.

CREATE TABLE reviews AS FROM 'engine/data/reviews.csv';

-- CREATE TABLE AS:

CREATE TABLE verdicts AS
SELECT review_id, sentiment, AI_FILTER(PROMPT('Is this review positive? {0}', text)) AS positive
FROM reviews
WHERE product_id = 21;

SELECT count(*) AS rows, count(positive) AS answered FROM verdicts;

-- INSERT adds more:

INSERT INTO verdicts
SELECT review_id, sentiment, AI_FILTER(PROMPT('Is this review positive? {0}', text))
FROM reviews
WHERE product_id = 23;

SELECT count(*) AS rows, count(positive) AS answered FROM verdicts;

-- UPDATE fills a column:

ALTER TABLE reviews ADD COLUMN positive BOOLEAN;

UPDATE reviews SET positive = AI_FILTER(PROMPT('Is this review positive? {0}', text)) WHERE product_id = 21;

SELECT count(positive) AS answered FROM reviews;

-- Both ways gave the same answers: equal questions have equal answers.

SELECT count(*) AS different
FROM verdicts v JOIN reviews r USING (review_id)
WHERE r.positive IS NOT NULL AND v.positive <> r.positive;

-- And how often did the model agree with the labels? At least three times in four.

SELECT avg((positive = (sentiment = 'positive'))::INTEGER) >= 0.75 AS good FROM verdicts;
