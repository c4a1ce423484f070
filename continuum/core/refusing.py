"""What an event loop can do and a run may not ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from continuum.exceptions import NonDeterminismError

__all__ = ["refuse_on"]

_FORBIDDEN = (
    "call_soon_threadsafe run_in_executor set_default_executor getaddrinfo getnameinfo create_connection "
    "create_server create_unix_connection create_unix_server create_datagram_endpoint connect_accepted_socket "
    "start_tls sendfile sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall sock_sendto "
    "sock_connect sock_accept sock_sendfile connect_read_pipe connect_write_pipe subprocess_shell subprocess_exec "
    "add_reader remove_reader add_writer remove_writer add_signal_handler remove_signal_handler run_forever "
    "run_until_complete stop close shutdown_asyncgens shutdown_default_executor set_task_factory "
    "set_exception_handler get_exception_handler"
)


def refuse_on(loop: type[Any]) -> None:
    """Have a class of loops refuse all of that."""
    for name in _FORBIDDEN.split():
        setattr(loop, name, _refuse(name))


def _refuse(name: str) -> Callable[..., Any]:
    def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise NonDeterminismError(
            f"loop.{name}() is not available in a workflow: its result would differ from replay to replay. "
            "Do the work in an activity."
        )

    refused.__name__ = name
    return refused
