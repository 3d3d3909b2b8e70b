"""What runs graphs with ONNX Runtime, the one folder that imports it."""

import os

# Its wheels report each use to their maker unless told not to, and write to the home folder; only before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
