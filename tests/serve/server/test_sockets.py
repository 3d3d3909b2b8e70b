"""Where a server listens."""

import socket
from pathlib import Path

import pytest

from latentrt.runtime.errors import InputError
from latentrt.serve.sockets import bound_socket


def test_a_free_port_is_found_and_shown() -> None:
    bound, address = bound_socket("127.0.0.1", 0, None)
    with bound:
        assert address == f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen at 127.0.0.1:{port}: Address already in use; --port"):
            bound_socket("127.0.0.1", port, None)


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(InputError, match=r"cannot listen at 192\.0\.2\.1:0"):
        bound_socket("192.0.2.1", 0, None)


def test_the_socket_of_a_killed_server_is_taken_over_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with bound_socket("", 0, path)[0]:
        pass  # it does not unlink it, as one that was killed
    bound, address = bound_socket("", 0, path)
    with bound:
        assert address == f"unix:{path}"
        bound.listen()
        with pytest.raises(InputError, match="Address already in use"):
            bound_socket("", 0, path)


def test_a_file_is_not_taken_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(InputError, match="cannot listen"):
        bound_socket("", 0, path)
    assert path.read_text(encoding="utf-8") == "precious"
