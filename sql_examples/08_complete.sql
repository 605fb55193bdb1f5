-- 08. Let a model write.
--
-- AI_COMPLETE returns text. The embedded model is very small and writes accordingly; with a better one named
-- (SET ai_oracle = 'hf:org/name', or an OpenAI-compatible server) the same SQL gives better text. What is shown
-- below holds for any model.

CREATE TABLE reviews AS FROM 'engine/data/reviews.csv';

SELECT review_id,
       length(answer) > 0 AS has_text,
       AI_COUNT_TOKENS('ai_complete', answer) <= 40 AS short_enough
FROM (
    SELECT review_id,
           AI_COMPLETE(PROMPT('Summarise this review in one short sentence: {0}', text),
                       {'max_tokens': 40}) AS answer
    FROM reviews
    WHERE review_id <= 3
)
WHERE answer IS NOT NULL
ORDER BY review_id;

-- An answer that a token limit cut off is never returned as an answer: the row gives NULL and a warning.

SELECT AI_COMPLETE('Count from one to one hundred in words.', {'max_tokens': 3}) IS NULL AS was_cut;

-- How long is a text for the model?

SELECT min(AI_COUNT_TOKENS('ai_complete', text)) AS shortest, max(AI_COUNT_TOKENS('ai_complete', text)) AS longest FROM reviews;
