"""A fleet of servers in virtual time: latency, refusals and cost by the number of replicas."""
