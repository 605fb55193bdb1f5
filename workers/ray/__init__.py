"""Models in Ray workers. Only these files import ray.

- `cluster` joins or starts a Ray; `pool` the pool that a query sees; `group` the workers of one model that are up.
- `manager` the actor that places workers and ends with the job; `worker` the actor that holds a model.
- `dispatch` sends micro-batches and makes good what goes wrong; `wire` what travels; `ship` registered objects.
- `sizing` and `peers`: how many workers there are, and which are slow; arithmetic alone.
- `tasks` runs plain functions as Ray tasks, for batch jobs.

docs/workers.md has what happens when something fails.
"""
