"""TCP of preview 2: what was granted is reached, under each of its addresses, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm
from wasmtime.component import Record, Variant

from avow.sandbox.component_functions import Failed
from avow.sandbox.grants import parse_grants
from avow.sandbox.preview2 import Preview2
from avow.sandbox.preview2_sockets import Address
from avow.sandbox.program import Surroundings, load
from avow.sandbox.wasi import SealedDirectory, Wasi
from avow.sandbox.wasi_calls import WasiCalls
from avow.sealing.store import Store

ENDPOINTS = (("h", 1), ("192.0.2.7", 7), ("0:0::7", 7))


def remote(*address: int, port: int) -> Variant:
    """An `ip-socket-address`."""
    record: Any = Record()
    record.port, record.address = port, address
    return Variant("ipv4" if len(address) == 4 else "ipv6", record)


H = remote(192, 0, 2, 1, port=1)


class Program:
    """Calls the functions as a component would; each connection's other end is in `others`."""

    def __init__(
        self,
        *directories: SealedDirectory,
        store: Store | None = None,
        listeners: dict[str, socket.socket] | None = None,
    ) -> None:
        listening = listeners or {}
        self.ports = [int(each.getsockname()[1]) for each in listening.values()]
        self.connected: list[tuple[str, int]] = []
        self.others: list[socket.socket] = []
        self.denied: list[str] = []
        self.failure: OSError | None = None
        self.wasi = Wasi(
            arguments=(),
            entropy=bytes(32),
            directories=directories,
            store=store,
            endpoints=() if directories else [_endpoint(*each) for each in ENDPOINTS],
            listeners=list(listening.values()),
            connect=self.connect,
            on_denied=lambda text: self.denied.append(text),
        )
        self.preview2 = Preview2(
            WasiCalls(self.wasi),
            frozenset(),
            endpoints=ENDPOINTS,
            listeners=[(host, port) for host, port in zip(listening, self.ports, strict=True)],
            resolve=self.resolve,
            on_denied=lambda text: self.denied.append(text),
        )
        self.functions = self.preview2.functions()
        self.network = self.call("instance-network", "instance-network").rep

    def connect(self, host: str, port: int) -> int:
        if self.failure is not None:
            raise self.failure
        self.connected.append((host, port))
        mine, other = socket.socketpair()
        mine.setblocking(False)
        self.others.append(other)
        return mine.detach()

    def resolve(self, name: str) -> list[Address]:
        assert name == "h"
        if self.failure is not None:
            raise self.failure
        return [IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"), IPv4Address("192.0.2.1")]

    def call(self, interface: str, name: str, *arguments: Any) -> Any:
        return self.functions[f"wasi:sockets/{interface}"][name](*arguments)

    def socket(self, name: str, *arguments: Any) -> Any:
        return self.call("tcp", f"[method]tcp-socket.{name}", *arguments)

    def stream(self, name: str, *arguments: Any) -> Any:
        return self.functions["wasi:io/streams"][f"[method]{name}"](*arguments)

    def addresses(self, name: str) -> list[Variant | None]:
        answers = self.call("ip-name-lookup", "resolve-addresses", self.network, name).rep
        method = "[method]resolve-address-stream.resolve-next-address"
        return [self.call("ip-name-lookup", method, answers) for _ in range(3)]

    def made(self, family: str = "ipv4") -> int:
        return int(self.call("tcp-create-socket", "create-tcp-socket", family).rep)

    def tried(self, to: Variant) -> Any:
        return self.socket("start-connect", self.made(to.tag), self.network, to)


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@pytest.fixture
def program() -> Iterator[Program]:
    made = Program()
    yield made
    made.wasi.close()
    for each in made.others:
        each.close()


def test_a_name_and_a_connection(program: Program) -> None:
    v6 = (0x2001, 0xDB8, 0, 0, 0, 0, 0, 1)
    assert program.addresses("h") == [Variant("ipv4", (192, 0, 2, 1)), Variant("ipv6", v6), None]
    mine = program.made()
    assert program.socket("address-family", mine) == "ipv4"
    assert program.socket("start-connect", mine, program.network, H) is None
    into, out = (each.rep for each in program.socket("finish-connect", mine))
    assert program.connected == [("h", 1)]
    assert program.socket("remote-address", mine) == H
    (other,) = program.others
    assert program.stream("input-stream.read", into, 9) == b""
    other.sendall(b"hello")
    waiting = program.stream("input-stream.subscribe", into).rep
    assert program.functions["wasi:io/poll"]["poll"]([waiting]) == [0]
    assert program.stream("input-stream.read", into, 9) == b"hello"
    assert program.stream("output-stream.write", out, b"you") is None
    assert other.recv(9) == b"you"
    assert program.socket("shutdown", mine, "send") is None
    assert other.recv(9) == b""
    # The other addresses of the name lead there too, and what was granted as an address.
    assert program.tried(remote(*v6, port=1)) is None
    assert program.tried(remote(192, 0, 2, 7, port=7)) is None
    assert program.tried(remote(0, 0, 0, 0, 0, 0, 0, 7, port=7)) is None
    assert program.connected[1:] == [("h", 1), ("192.0.2.7", 7), ("0:0::7", 7)]
    assert program.denied == []


def test_it_is_closed_with_the_last_of_its_handles(program: Program) -> None:
    program.addresses("h")
    mine = program.made()
    program.socket("start-connect", mine, program.network, H)
    into, out = (each.rep for each in program.socket("finish-connect", mine))
    (other,) = program.others
    other.setblocking(False)
    for handle in (into, mine):
        program.preview2.drop(handle)
        with pytest.raises(BlockingIOError):
            other.recv(1)
    program.preview2.drop(out)
    assert other.recv(1) == b""
    # Also one that nobody finished.
    mine = program.made()
    program.socket("start-connect", mine, program.network, H)
    program.preview2.drop(mine)
    assert program.others[1].recv(1) == b""


def test_a_peer_that_does_not_read(program: Program) -> None:
    program.addresses("h")
    mine = program.made()
    program.socket("start-connect", mine, program.network, H)
    _, out = (each.rep for each in program.socket("finish-connect", mine))
    written = 0
    while allowed := program.stream("output-stream.check-write", out):
        written += min(allowed, 4096)
        assert program.stream("output-stream.write", out, bytes(min(allowed, 4096))) is None
        assert written < 1 << 24
    waiting = program.stream("output-stream.subscribe", out).rep
    ready = program.functions["wasi:io/poll"]["[method]pollable.ready"]
    assert ready(waiting) is False
    while written:
        written -= len(program.others[0].recv(1 << 20))
    assert ready(waiting) is True


@pytest.mark.parametrize(
    "to",
    [
        # Of a name that was not asked for, a port that was not granted, an address that was not.
        remote(192, 0, 2, 9, port=1),
        remote(192, 0, 2, 7, port=8),
        remote(127, 0, 0, 1, port=7),
        remote(0, 0, 0, 0, 0, 0xFFFF, 0xC000, 0x0207, port=7),
    ],
    ids=["name", "port", "address", "mapped"],
)
def test_nothing_else_is_reached(program: Program, to: Variant) -> None:
    assert program.tried(to) == Failed("access-denied")
    assert program.connected == []
    assert program.denied[0].startswith("tcp:")


def test_an_address_of_a_name_before_it_was_asked_for(program: Program) -> None:
    assert program.tried(H) == Failed("access-denied")


def test_names_that_were_not_granted(program: Program) -> None:
    for name in ("other", "other", "../h", "h:1", "h\0", "\x1b[31m"):
        answer = program.call("ip-name-lookup", "resolve-addresses", program.network, name)
        assert answer == Failed("access-denied")
    assert len(program.denied) == 5
    assert "'other'" in program.denied[0]
    assert "\x1b" not in program.denied[-1]


def test_nobody_hears_of_it(program: Program) -> None:
    class Gone(list[str]):
        def append(self, text: str) -> None:
            raise BrokenPipeError(text)

    program.denied = Gone()
    answer = program.call("ip-name-lookup", "resolve-addresses", program.network, "other")
    assert answer == Failed("access-denied")


def test_in_the_wrong_order(program: Program) -> None:
    mine = program.made()
    assert program.socket("finish-connect", mine) == Failed("not-in-progress")
    assert program.socket("shutdown", mine, "both") == Failed("invalid-state")
    assert program.socket("remote-address", mine) == Failed("invalid-state")
    granted = remote(192, 0, 2, 7, port=7)
    assert program.socket("start-connect", mine, program.network, granted) is None
    assert program.socket("start-connect", mine, program.network, granted) == Failed(
        "invalid-state"
    )
    program.socket("finish-connect", mine)
    assert program.socket("finish-connect", mine) == Failed("not-in-progress")
    six = program.made("ipv6")
    assert program.socket("start-connect", six, program.network, granted) == Failed(
        "invalid-argument"
    )
    assert program.tried(remote(192, 0, 2, 7, port=0)) == Failed("invalid-argument")


def test_what_the_host_refuses(program: Program) -> None:
    program.addresses("h")
    program.failure = ConnectionRefusedError(111, "refused")
    assert program.tried(H) == Failed("connection-refused")
    answer = program.call("ip-name-lookup", "resolve-addresses", program.network, "h")
    assert answer == Failed("name-unresolvable")


def test_a_file_is_no_connection(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", [bytes(32)]) as store:
        for path in ("/files/d", "/files/d/net", "/files/d/net/tcp"):
            store.make_directory(path)
        store.make_file("/files/d/net/tcp/192.0.2.9:9")
        program = Program(SealedDirectory("/", "/files/d"), store=store)
        before = os.listdir("/proc/self/fd")
        assert program.tried(remote(192, 0, 2, 9, port=9)) == Failed("access-denied")
        assert os.listdir("/proc/self/fd") == before
        program.wasi.close()


@pytest.fixture
def server() -> Iterator[Program]:
    """Granted to listen at 127.0.0.1 and, by name, at 192.0.2.1."""
    one, two = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    made = Program(listeners={"127.0.0.1": one, "h": two})
    yield made
    made.wasi.close()


def listening(server: Program, *address: int, port: int) -> int:
    made = server.made()
    local = remote(*address, port=port)
    assert server.socket("start-bind", made, server.network, local) is None
    assert server.socket("finish-bind", made) is None
    assert server.socket("local-address", made) == local
    assert server.socket("is-listening", made) is False
    assert server.socket("set-listen-backlog-size", made, 5) is None
    assert server.socket("start-listen", made) is None
    assert server.socket("finish-listen", made) is None
    assert server.socket("is-listening", made) is True
    return made


@pytest.mark.parametrize(("number", "address"), [(0, (127, 0, 0, 1)), (1, (192, 0, 2, 1))])
def test_connections_are_accepted(
    server: Program, number: int, address: tuple[int, int, int, int]
) -> None:
    port = server.ports[number]
    listener = listening(server, *address, port=port)
    waiting = server.socket("subscribe", listener).rep
    ready = server.functions["wasi:io/poll"]["[method]pollable.ready"]
    assert ready(waiting) is False
    assert server.socket("accept", listener) == Failed("would-block")
    with socket.create_connection(("127.0.0.1", port)) as client:
        assert server.functions["wasi:io/poll"]["poll"]([waiting]) == [0]
        made, into, out = (each.rep for each in server.socket("accept", listener))
        client.sendall(b"hello")
        assert server.stream("input-stream.blocking-read", into, 9) == b"hello"
        assert server.stream("output-stream.blocking-write-and-flush", out, b"you") is None
        assert client.recv(9) == b"you"
        assert server.socket("remote-address", made).payload.port == 0
        for handle in (into, out, made):
            server.preview2.drop(handle)
        assert client.recv(9) == b""


def test_a_listener_is_bound_by_one_at_a_time(server: Program) -> None:
    address = remote(127, 0, 0, 1, port=server.ports[0])
    first = listening(server, 127, 0, 0, 1, port=server.ports[0])
    second = server.made()
    bind = ("start-bind", second, server.network, address)
    assert server.socket(*bind) == Failed("address-in-use")
    # It goes on listening, and nobody else can have what was granted.
    server.preview2.drop(first)
    assert server.socket(*bind) is None
    assert server.socket("accept", second) == Failed("invalid-state")
    assert server.socket("start-listen", second) == Failed("invalid-state")
    assert server.socket(*bind) == Failed("invalid-state")
    assert server.socket("finish-listen", second) == Failed("not-in-progress")
    server.preview2.drop(second)
    with socket.create_connection(("127.0.0.1", server.ports[0])):
        again = listening(server, 127, 0, 0, 1, port=server.ports[0])
        assert len(server.socket("accept", again)) == 3


def test_nothing_else_is_bound(server: Program) -> None:
    for address, port in (
        ((127, 0, 0, 1), server.ports[1]),
        ((0, 0, 0, 0), server.ports[0]),
        ((127, 0, 0, 1), 0),
    ):
        local = remote(*address, port=port)
        assert server.socket("start-bind", server.made(), server.network, local) == Failed(
            "access-denied"
        )
    assert len(server.denied) == 3
    assert "listen:ADDRESS:PORT" in server.denied[0]


CODES = (
    "unknown access-denied not-supported invalid-argument out-of-memory timeout "
    "concurrency-conflict not-in-progress would-block invalid-state new-socket-limit "
    "address-not-bindable address-in-use remote-unreachable connection-refused connection-reset "
    "connection-aborted datagram-too-large name-unresolvable temporary-resolver-failure "
    "permanent-resolver-failure"
)
CONNECTS = f"""(component
  (import "wasi:io/streams@0.2.1" (instance $streams
    (export "input-stream" (type (sub resource))) (export "output-stream" (type (sub resource)))))
  (alias export $streams "input-stream" (type $input))
  (alias export $streams "output-stream" (type $output))
  (import "wasi:sockets/network@0.2.1" (instance $network
    (export "network" (type (sub resource)))
    (type $codes (enum {" ".join(f'"{each}"' for each in CODES.split())}))
    (export "error-code" (type (eq $codes)))
    (type $family (enum "ipv4" "ipv6")) (export "ip-address-family" (type (eq $family)))
    (type $four (tuple u8 u8 u8 u8)) (export "ipv4-address" (type $a4 (eq $four)))
    (type $six (tuple u16 u16 u16 u16 u16 u16 u16 u16)) (export "ipv6-address" (type $a6 (eq $six)))
    (type $r4 (record (field "port" u16) (field "address" $a4)))
    (export "ipv4-socket-address" (type $s4 (eq $r4)))
    (type $r6 (record (field "port" u16) (field "flow-info" u32) (field "address" $a6)
      (field "scope-id" u32)))
    (export "ipv6-socket-address" (type $s6 (eq $r6)))
    (type $socket (variant (case "ipv4" $s4) (case "ipv6" $s6)))
    (export "ip-socket-address" (type (eq $socket)))))
  (alias export $network "network" (type $net))
  (alias export $network "error-code" (type $code))
  (alias export $network "ip-address-family" (type $families))
  (alias export $network "ip-socket-address" (type $address))
  (import "wasi:sockets/instance-network@0.2.1" (instance $instance
    (alias outer 1 $net (type $n)) (export "network" (type $o (eq $n)))
    (export "instance-network" (func (result (own $o))))))
  (import "wasi:sockets/tcp@0.2.1" (instance $tcp
    (alias outer 1 $net (type $n0)) (export "network" (type $n (eq $n0)))
    (alias outer 1 $code (type $c0)) (export "error-code" (type $c (eq $c0)))
    (alias outer 1 $address (type $a0)) (export "ip-socket-address" (type $a (eq $a0)))
    (alias outer 1 $input (type $i0)) (export "input-stream" (type $i (eq $i0)))
    (alias outer 1 $output (type $o0)) (export "output-stream" (type $o (eq $o0)))
    (export "tcp-socket" (type $s (sub resource)))
    (export "[method]tcp-socket.start-connect" (func (param "self" (borrow $s))
      (param "network" (borrow $n)) (param "remote-address" $a) (result (result (error $c)))))
    (export "[method]tcp-socket.finish-connect" (func (param "self" (borrow $s))
      (result (result (tuple (own $i) (own $o)) (error $c)))))
    (export "[method]tcp-socket.remote-address" (func (param "self" (borrow $s))
      (result (result $a (error $c)))))))
  (alias export $tcp "tcp-socket" (type $tcp-socket))
  (import "wasi:sockets/tcp-create-socket@0.2.1" (instance $create
    (alias outer 1 $code (type $c0)) (export "error-code" (type $c (eq $c0)))
    (alias outer 1 $families (type $f0)) (export "ip-address-family" (type $f (eq $f0)))
    (alias outer 1 $tcp-socket (type $s0)) (export "tcp-socket" (type $s (eq $s0)))
    (export "create-tcp-socket" (func (param "address-family" $f)
      (result (result (own $s) (error $c)))))))
  (core module $memory (memory (export "memory") 1))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $m))
  (core func $network (canon lower (func $instance "instance-network")))
  (core func $create (canon lower (func $create "create-tcp-socket") (memory $m)))
  (core func $start (canon lower (func $tcp "[method]tcp-socket.start-connect") (memory $m)))
  (core func $finish (canon lower (func $tcp "[method]tcp-socket.finish-connect") (memory $m)))
  (core func $remote (canon lower (func $tcp "[method]tcp-socket.remote-address") (memory $m)))
  (core module $program
    (import "memory" "memory" (memory 1))
    (import "host" "network" (func $network (result i32)))
    (import "host" "create" (func $create (param i32 i32)))
    (import "host" "start" (func $start
      (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "finish" (func $finish (param i32 i32)))
    (import "host" "remote" (func $remote (param i32 i32)))
    (func (export "run") (result i32)
      (call $create (i32.const 0) (i32.const 16))
      (call $start (i32.load (i32.const 20)) (call $network) (i32.const 0) (i32.const PORT)
        (i32.const 127) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 32))
      (if (i32.load8_u (i32.const 32)) (then (return (i32.const 1))))
      (call $finish (i32.load (i32.const 20)) (i32.const 48))
      (if (i32.load8_u (i32.const 48)) (then (return (i32.const 1))))
      (call $remote (i32.load (i32.const 20)) (i32.const 64))
      ;; A result with a variant with a record: 4 bytes each before the port.
      (i32.ne (i32.load16_u (i32.const 72)) (i32.const PORT))))
  (core instance $p (instantiate $program (with "memory" (instance $memory))
    (with "host" (instance (export "network" (func $network)) (export "create" (func $create))
      (export "start" (func $start)) (export "finish" (func $finish))
      (export "remote" (func $remote))))))
  (func $run (result (result)) (canon lift (core func $p "run")))
  (instance $r (export "run" (func $run)))
  (export "wasi:cli/run@0.2.1" (instance $r)))"""


def test_a_component_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        component = load(wat2wasm(CONNECTS.replace("PORT", str(port))))
        granted = parse_grants([f"tcp:127.0.0.1:{port}"], folder=Path("/"))
        assert component.start(Surroundings(("app",), granted)).exit_code() == 0
        server.accept()[0].close()
        others = parse_grants([f"tcp:127.0.0.1:{port - 1}"], folder=Path("/"))
        assert component.start(Surroundings(("app",), others)).exit_code() == 1
