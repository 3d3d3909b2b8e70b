"""latentrt on Ray Serve: an ingress with the HTTP app, and replicas of an engine with a device each."""
