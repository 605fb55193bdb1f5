"""Models behind OpenAI-compatible endpoints.

- `http` the model; `completions` what is asked and read; `json_answer` answers by a schema; `batch_api` work that may
  wait for a day.
- `transport` one request with its retries; `connections` the clients that a process shares; `limiter` how many are in
  flight; `rate_limits` what servers' headers say.

docs/backends.md has the options.
"""
