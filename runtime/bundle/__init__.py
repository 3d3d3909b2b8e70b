"""The bundle on disk: manifest, files, engines, sizes. Knows nothing of running graphs."""
