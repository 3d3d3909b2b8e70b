"""Native jobs: kept by a store, drawn by a runner, followed by their events. Knows nothing of HTTP."""
