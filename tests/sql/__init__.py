"""The sqllogictest-style suite: `runner` reads .test files, `test_sql` makes each record a test."""
