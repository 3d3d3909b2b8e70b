"""Devices in processes of their own, and the fleet of them. Knows no HTTP."""
