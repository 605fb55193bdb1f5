-- 07. Aggregate over answers.
--
-- An answer is a value, so everything SQL does with values works: GROUP BY, HAVING, CASE, windows.

CREATE TABLE reviews AS FROM 'engine/data/reviews.csv';
CREATE TABLE products AS FROM 'engine/data/products.csv';

-- Per restaurant: how many reviews, and does the model count roughly what the labels count?

SELECT p.name,
       count(*) AS reviews,
       count(*) FILTER (r.sentiment = 'positive') AS labelled_positive,
       abs(count(*) FILTER (AI_FILTER(PROMPT('Is this review positive? {0}', r.text)))
           - count(*) FILTER (r.sentiment = 'positive')) <= 3 AS model_agrees_roughly
FROM reviews r JOIN products p USING (product_id)
WHERE p.department = 'restaurants'
GROUP BY p.name
ORDER BY p.name;

-- HAVING over answers: restaurants with at least two reviews that the model takes for positive.

SELECT p.name
FROM reviews r JOIN products p USING (product_id)
WHERE p.department = 'restaurants'
GROUP BY p.name
HAVING count(*) FILTER (AI_FILTER(PROMPT('Is this review positive? {0}', r.text))) >= 2
ORDER BY p.name;

-- Inside a CASE a question is asked only where its branch is taken: one-star reviews need no model.

SELECT count(*) AS rows,
       count(*) FILTER (stars = 1) AS decided_by_stars,
       count(*) FILTER (verdict IS NULL) AS undecided
FROM (
    SELECT stars,
           CASE WHEN stars = 1 THEN 'negative'
                WHEN AI_FILTER(PROMPT('Is this review positive? {0}', text)) THEN 'positive'
                ELSE 'negative' END AS verdict
    FROM reviews
    WHERE product_id IN (11, 12)
);

SELECT rows_in AS asked FROM ai.ops ORDER BY run_id DESC LIMIT 1;
