-- 05. Embeddings and similarity search.
--
-- AI_EMBED turns a text into a list of numbers; texts about the same thing lie close together. AI_SIMILARITY
-- compares two of them: 1 is the same direction, 0 has nothing to do with it.

CREATE TABLE help (id INTEGER, title VARCHAR);
INSERT INTO help VALUES
    (1, 'How to reset your password'),
    (2, 'Returning a product and getting a refund'),
    (3, 'Tracking your parcel'),
    (4, 'Changing the delivery address'),
    (5, 'Pairing headphones with a phone by bluetooth'),
    (6, 'Cleaning the espresso machine');

CREATE TABLE questions (qid INTEGER, question VARCHAR);
INSERT INTO questions VALUES
    (1, 'I forgot my password and cannot log in'),
    (2, 'I want my money back'),
    (3, 'Where is my package?'),
    (4, 'my headset does not connect to my mobile');

-- Store the embeddings of the help pages once ...

CREATE TABLE help_vectors AS SELECT id, title, AI_EMBED(title) AS vector FROM help;

SELECT typeof(vector) AS type, count(*) AS rows FROM help_vectors GROUP BY type;

-- ... and find the nearest page of every question.

SELECT qid, question, arg_max(title, AI_SIMILARITY(AI_EMBED(question), vector)) AS page
FROM questions, help_vectors
GROUP BY qid, question
ORDER BY qid;

-- AI_SIMILARITY takes texts too.

SELECT AI_SIMILARITY('a cup of coffee', 'an espresso') > AI_SIMILARITY('a cup of coffee', 'a tax form') AS closer;
