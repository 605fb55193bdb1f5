-- 06. Join two tables by meaning.
--
-- An AI_FILTER in the ON clause joins rows when a model says that they belong together. Equalities and other
-- cheap conditions of the ON run first, so write every one you know: here the pairs are asked only within the
-- same language.

CREATE TABLE complaints (id INTEGER, lang VARCHAR, text VARCHAR);
INSERT INTO complaints VALUES
    (1, 'en', 'The soup was cold and the waiter was rude.'),
    (2, 'en', 'My parcel never arrived.'),
    (3, 'en', 'The screen of my laptop is broken.'),
    (4, 'de', 'Das Paket kam nie an.');

CREATE TABLE desks (lang VARCHAR, desk VARCHAR, covers VARCHAR);
INSERT INTO desks VALUES
    ('en', 'kitchen', 'food in restaurants'),
    ('en', 'post', 'delivery of parcels'),
    ('en', 'repair', 'broken computers');

-- The number of pairs that the cheap condition leaves:

SELECT count(*) AS pairs FROM complaints c JOIN desks d ON c.lang = d.lang;

SELECT count(*) <= 9 AS at_most_the_pairs
FROM complaints c JOIN desks d
  ON c.lang = d.lang AND AI_FILTER(PROMPT('Does the complaint "{0}" belong to {1}?', c.text, d.covers));

-- The same join, written with AI_JOIN, which takes the question alone.

SELECT count(*) <= 9 AS at_most_the_pairs
FROM (FROM complaints WHERE lang = 'en') c
AI_JOIN desks d ON PROMPT('Does the complaint "{0}" belong to {1}?', c.text, d.covers);

-- Every kind of join works. A LEFT JOIN keeps the complaint that no desk speaks the language of.

SELECT c.id, c.lang, bool_and(d.desk IS NULL) AS no_desk
FROM complaints c LEFT JOIN desks d
  ON c.lang = d.lang AND AI_FILTER(PROMPT('Does the complaint "{0}" belong to {1}?', c.text, d.covers))
WHERE c.lang = 'de'
GROUP BY c.id, c.lang;

-- For one clear desk each, compare meanings instead of asking yes or no: the nearest by embedding.

SELECT c.id, arg_max(d.desk, AI_SIMILARITY(c.text, d.covers)) AS desk
FROM complaints c JOIN desks d ON c.lang = d.lang
GROUP BY c.id
ORDER BY c.id;
