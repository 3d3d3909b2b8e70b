"""The faces of the server over HTTP. They know a `Service`, and nothing of devices."""
