-- 04. Scores, and the best k.
--
-- AI_SCORE is the probability of yes, between 0 and 1. It sorts rows where AI_FILTER would only split them.

CREATE TABLE reviews AS FROM 'engine/data/reviews.csv';

-- How certain is the model? Every score lies in [0, 1], and AI_FILTER is "more than one half".

SELECT count(*) AS rows,
       bool_and(AI_SCORE(PROMPT('Is this review positive? {0}', text)) BETWEEN 0 AND 1) AS in_range,
       bool_and((AI_SCORE(PROMPT('Is this review positive? {0}', text)) > 0.5)
                = AI_FILTER(PROMPT('Is this review positive? {0}', text))) AS same_as_filter
FROM reviews
WHERE product_id IN (14, 19);

-- The three happiest reviews of the cafe, and what their authors' labels say.

SELECT sentiment, count(*) AS among_the_top_three
FROM (
    SELECT sentiment
    FROM reviews
    WHERE product_id = 14
    ORDER BY AI_SCORE(PROMPT('Is this review positive? {0}', text)) DESC
    LIMIT 3
)
GROUP BY sentiment;

-- Scores are numbers: average them, compare them.

SELECT avg(AI_SCORE(PROMPT('Is this review positive? {0}', text))) FILTER (sentiment = 'positive')
     > avg(AI_SCORE(PROMPT('Is this review positive? {0}', text))) FILTER (sentiment = 'negative')
       AS positives_score_higher
FROM reviews
WHERE product_id IN (14, 19);
