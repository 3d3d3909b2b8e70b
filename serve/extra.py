"""Whether the libraries of the extra `serve` are installed."""

from importlib.util import find_spec

from latentrt.runtime.errors import BackendError

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def require_extra(command: str) -> None:
    """Raise `BackendError` where a command cannot work without them."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise BackendError(f"{', '.join(missing)} not found: `latentrt {command}` needs pip install 'latentrt[serve]'")
