"""latentrt as a service: one dispatcher for each device, and HTTP over it. Needs the extra `serve`."""
