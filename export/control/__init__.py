"""ControlNets and adapters -> control bundles. Needs the extra `export`."""
