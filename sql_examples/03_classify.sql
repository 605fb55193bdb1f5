-- 03. Choose one of several labels.
--
-- AI_CLASSIFY puts each text under the label that fits best.

CREATE TABLE notes (id INTEGER, body VARCHAR);
INSERT INTO notes VALUES
    (1, 'The football match ended two to one after a late goal by the striker.'),
    (2, 'Add the onions and the garlic to the pan and fry them in olive oil.'),
    (3, 'The bank raised its interest rate and shares on the stock market fell.'),
    (4, 'Our team won the basketball tournament in the last second.'),
    (5, 'Bake the bread for forty minutes and let it cool before you slice it.'),
    (6, 'Investors bought government bonds after the company reported a loss.');

SELECT id, AI_CLASSIFY(body, ['sports', 'cooking', 'finance']) AS topic, body
FROM notes
ORDER BY id;

-- A label may carry a description, for when its name does not say enough.

SELECT id, AI_CLASSIFY(body, [
    {'label': 'A', 'description': 'sports'},
    {'label': 'B', 'description': 'cooking'},
    {'label': 'C', 'description': 'finance'}
]) AS shelf
FROM notes
ORDER BY id;

-- The answer is an ordinary value: group by it.

SELECT AI_CLASSIFY(body, ['sports', 'cooking', 'finance']) AS topic, count(*) AS notes
FROM notes
GROUP BY topic
ORDER BY topic;

-- Several labels may fit at once: {'output_mode': 'multi'} gives a list.

SELECT typeof(AI_CLASSIFY(body, ['sports', 'cooking', 'finance'], {'output_mode': 'multi'})) AS type
FROM notes
WHERE id = 1;
