"""What steers a UNet from outside: ControlNets and adapters, their bundles, and their weight in each call."""
