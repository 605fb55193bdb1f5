-- 10. NULLs and rows that fail.

CREATE TABLE inbox (id INTEGER, body VARCHAR);
INSERT INTO inbox VALUES
    (1, 'What a wonderful evening, we loved every minute!'),
    (2, NULL),
    (3, repeat('This message never ends. ', 20000));

-- NULL in, NULL out, and no model call. The third message is longer than the model can read: that row gives
-- NULL too, with a warning (on standard error) that says why. The other rows are answered.

SELECT id, AI_FILTER(PROMPT('Is this message positive? {0}', body)) AS positive
FROM inbox
ORDER BY id;

-- In a WHERE, NULL is not true: neither row is returned.

SELECT count(*) AS found FROM inbox WHERE id > 1 AND AI_FILTER(PROMPT('Is this message positive? {0}', body));

-- To see errors in the result, ask for them.

SELECT id, r.value AS positive, r.error IS NOT NULL AS failed
FROM (SELECT id, AI_FILTER(PROMPT('Is this message positive? {0}', body), {'errors': true}) AS r FROM inbox)
ORDER BY id;

-- The trace keeps them as well.

SELECT status, count(*) AS inputs
FROM ai.decisions
WHERE run_id = (SELECT run_id FROM ai.runs ORDER BY started DESC LIMIT 1)
GROUP BY status
ORDER BY status;
