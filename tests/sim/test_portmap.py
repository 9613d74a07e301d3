"""Port mapping at gateways with faults, each of which was seen on a real one."""

from __future__ import annotations

import logging
import math
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest
import trio

from tests.identities import ALICE, BOB
from tests.sim.gateways import PORT, WANIP, Entry, Gateway, Home, UpnpOnly, at_home, mapping, only
from warpgate_trio.address import Transport
from warpgate_trio.identity import Identity
from warpgate_trio.portmap.asking import NatPmpClient
from warpgate_trio.portmap.client import Client, ProtocolName
from warpgate_trio.portmap.keeper import Keeper
from warpgate_trio.portmap.lease import MAX_CONFLICTS, Lease
from warpgate_trio.portmap.service import GatewayState, PortMaps
from warpgate_trio.sim.packet import TCP
from warpgate_trio.testing import SimulatedHost

HOUR = 3600.0
WANPPP = "urn:schemas-upnp-org:service:WANPPPConnection:1"
Values = dict[str, str]


def state(maps: PortMaps) -> GatewayState:
    (found,) = maps.gateways
    return found


def adds(home: Home) -> list[tuple[int, int]]:
    """External port and lease of each mapping that was requested."""
    return [(external, lease) for _, _, external, lease in home.gateway.asked]


@pytest.mark.slow("hours of renewals")
@pytest.mark.parametrize("protocol", ["pcp", "natpmp", "upnp"])
def test_a_port_is_open_while_it_is_wanted(protocol: ProtocolName) -> None:
    async def body(home: Home) -> None:
        assert not await home.reaches()
        async with mapping(home.host, protocols=(protocol,)) as maps:
            assert (only(maps).external, str(only(maps).ip)) == (PORT, home.gateway.outside)
            assert await home.reaches()
            await trio.sleep(3 * HOUR)
            assert await home.reaches()
            assert {(internal, external) for _, internal, external, _ in home.gateway.asked} == {(PORT, PORT)}
        assert home.gateway.table == {}
        assert not await home.reaches()

    at_home(Gateway, body)


@pytest.mark.parametrize("code", [725, 402])
def test_01_and_02_a_lease_is_refused(code: int) -> None:
    """The mapping is then permanent, and this side deletes it."""

    class Permanent(UpnpOnly):
        def soap_addportmapping(self, arguments: Values, client: str) -> Values | int:
            if arguments["NewLeaseDuration"] != "0":
                self.asked.append(("upnp", PORT, PORT, int(arguments["NewLeaseDuration"])))
                return code
            return super().soap_addportmapping(arguments, client)

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            assert only(maps).permanent
            assert "without a time limit" in state(maps).problems[0]
            assert home.gateway.table[PORT].expires == math.inf
            await trio.sleep(HOUR)
        assert home.gateway.table == {}
        assert adds(home) == [(PORT, 3600), (PORT, 0)]

    at_home(Permanent, body)


@pytest.mark.parametrize("code", [402, 501, 728, 200])
def test_03_the_table_is_full(code: int) -> None:
    """The gateway may answer 200 OK nevertheless; no mapping of others is deleted."""

    class Full(UpnpOnly):
        def soap_addportmapping(self, arguments: Values, client: str) -> Values | int:
            self.asked.append(("upnp", PORT, int(arguments["NewExternalPort"]), int(arguments["NewLeaseDuration"])))
            return {} if code == 200 else code

    async def body(home: Home) -> None:
        home.gateway.table = {port: Entry("10.0.1.77", port, math.inf) for port in range(2000, 2032)}
        async with mapping(home.host) as maps:
            assert maps.mapped == ()
            assert state(maps).problems
            await trio.sleep(50)
            assert len(home.gateway.asked) <= 1 + MAX_CONFLICTS
        assert len(home.gateway.table) == 32

    at_home(Full, body)


class _Jealous(UpnpOnly):
    """It refuses to change an existing mapping, even for its owner."""

    def put(self, port: int, client: str, internal: int, lifetime: float) -> int:
        known = self.entry(port)
        if known is not None and known.internal != internal:
            return 718
        return super().put(port, client, internal, lifetime)


@pytest.mark.parametrize("kind", [UpnpOnly, _Jealous])
def test_04_a_mapping_of_the_last_run_is_taken_over(kind: type[Gateway]) -> None:
    async def body(home: Home) -> None:
        home.gateway.put(PORT, home.host.ip, PORT - 1, HOUR)
        async with mapping(home.host) as maps:
            assert only(maps).external == PORT
            assert home.gateway.table[PORT].internal == PORT
        assert home.gateway.table == {}

    at_home(kind, body)


class _Guarded(Gateway):
    """A mapping's nonce is its owner's password (RFC 6887 §11.3)."""

    natpmp = upnp = False

    def answer_pcp(self, data: bytes, client: str) -> bytes | None:
        if data[1] == 1:
            internal = int.from_bytes(data[40:42], "big")
            for port, entry in self.table.items():
                if (entry.client, entry.internal) == (client, internal) and self.nonces[port] != data[24:36]:
                    return self.pcp_head(data, 2, 30) + data[24:]
        return super().answer_pcp(data, client)


@pytest.mark.parametrize(("identity", "port", "known"), [(ALICE, PORT, True), (BOB, PORT, False), (ALICE, 4434, False)])
def test_04_what_a_killed_process_has_left_is_the_same_nodes_alone(identity: Identity, port: int, known: bool) -> None:
    async def body(home: Home) -> None:
        gateway = home.gateway
        async with mapping(home.host, sign=partial(ALICE.sign, b"test")):
            left, nonce = gateway.table[PORT], gateway.nonces[PORT]
        gateway.put(PORT, left.client, left.internal, HOUR)
        async with mapping(home.host, port=port, sign=partial(identity.sign, b"test")) as maps:
            assert [each.internal for each in maps.mapped] == ([port] if known or port != PORT else [])
            assert (nonce in [gateway.nonces[each.external] for each in maps.mapped]) is known
        assert (gateway.table == {}) is known

    at_home(_Guarded, body)


@pytest.mark.parametrize("code", [718, 729])
def test_05_where_somebody_has_the_port_another_one_is_taken(code: int) -> None:
    class Taken(UpnpOnly):
        def soap_addportmapping(self, arguments: Values, client: str) -> Values | int:
            if arguments["NewExternalPort"] == str(PORT):
                return code
            return super().soap_addportmapping(arguments, client)

    async def body(home: Home) -> None:
        if code == 718:
            home.gateway.put(PORT, home.neighbour.ip, PORT, math.inf)
        async with mapping(home.host) as maps:
            assert only(maps).external not in (PORT, 0)
            assert await home.reaches(only(maps).external)
        assert {entry.client for entry in home.gateway.table.values()} <= {home.neighbour.ip}
        assert (PORT in home.gateway.table) is (code == 718)

    at_home(Taken, body)


class _Unread(UpnpOnly):
    """It maps, but does not show the mapping when asked."""

    code = 401
    full = False

    def soap_addportmapping(self, arguments: Values, client: str) -> Values | int:
        return 501 if self.full else super().soap_addportmapping(arguments, client)

    def soap_getspecificportmappingentry(self, arguments: Values, client: str) -> Values | int:
        return self.code


class _Unread402(_Unread):
    code = 402


class _Unread501(_Unread):
    code = 501


class _UnreadForEver(_Unread):
    def soap_addportmapping(self, arguments: Values, client: str) -> Values | int:
        return 725 if arguments["NewLeaseDuration"] != "0" else super().soap_addportmapping(arguments, client)


@pytest.mark.parametrize("kind", [_Unread, _Unread402, _Unread501, _UnreadForEver])
@pytest.mark.parametrize("later", ["", "refused", "somebody else's"])
def test_a_mapping_that_is_not_read_back_is_not_used_and_deleted(kind: type[Gateway], later: str) -> None:
    """It is deleted even if a repeated request is refused, because it still exists; others' mappings are not."""

    async def body(home: Home) -> None:
        gateway: Any = home.gateway
        async with mapping(home.host) as maps:
            assert maps.mapped == ()
            assert any("cannot be read back" in each for each in state(maps).problems)
            assert gateway.table[PORT].client == home.host.ip
            gateway.full = later == "refused"
            if later == "somebody else's":
                gateway.table[PORT].client = home.neighbour.ip
            await trio.sleep(100)
        assert set(gateway.table) == ({PORT} if later == "somebody else's" else set())

    at_home(kind, body)


def test_a_gateway_without_an_address_of_its_own_has_mapped_all_the_same() -> None:
    """It answers NETWORK_FAILURE to the question for its address (RFC 6886 §3.5), and has one later."""

    class Unplugged(Gateway):
        pcp = upnp = False
        plugged = True

        def answer_natpmp(self, data: bytes, client: str) -> bytes | None:
            answer = super().answer_natpmp(data, client)
            if data[1]:
                self.plugged = False
                return answer
            return answer if self.plugged else bytes([0, 128, 0, 3]) + self.epoch().to_bytes(4, "big") + bytes(4)

    async def body(home: Home) -> None:
        gateway: Any = home.gateway
        async with mapping(home.host) as maps:
            assert (only(maps).external, only(maps).ip) == (PORT, None)
            gateway.plugged = True
            await trio.sleep(610)
            assert str(only(maps).ip) == gateway.outside
        assert gateway.table == {}

    at_home(Unplugged, body)


@pytest.mark.slow("hours of renewals")
def test_06_a_renewal_extends_nothing() -> None:
    class Stubborn(UpnpOnly):
        def put(self, port: int, client: str, internal: int, lifetime: float) -> int:
            known = self.entry(port)
            return 0 if known is not None else super().put(port, client, internal, lifetime)

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            for _ in range(5):
                await trio.sleep(HOUR / 2)
                assert await home.reaches()
            assert only(maps).external == PORT

    at_home(Stubborn, body)


@pytest.mark.slow("dozens of renewals")
@pytest.mark.parametrize("given", [86_400, 60])
@pytest.mark.parametrize("protocol", ["pcp", "natpmp", "upnp"])
def test_07_another_lease_than_asked(given: int, protocol: ProtocolName) -> None:
    class Other(Gateway):
        def put(self, port: int, client: str, internal: int, lifetime: float) -> int:
            return super().put(port, client, internal, given)

        def answer_natpmp(self, data: bytes, client: str) -> bytes | None:
            answer = super().answer_natpmp(data, client)
            assert answer is not None
            return answer[:12] + given.to_bytes(4, "big") if len(answer) == 16 and any(answer[12:]) else answer

        def answer_pcp(self, data: bytes, client: str) -> bytes | None:
            answer = super().answer_pcp(data, client)
            assert answer is not None
            return answer[:4] + given.to_bytes(4, "big") + answer[8:] if any(answer[4:8]) else answer

    async def body(home: Home) -> None:
        async with mapping(home.host, protocols=(protocol,)):
            await trio.sleep(HOUR / 6)
            assert await home.reaches()
            expected = 1 + int(HOUR / 6 / (given / 2))
            assert expected - 1 <= len(home.gateway.asked) <= expected + 1

    at_home(Other, body)


def test_08_no_port_0_and_no_any() -> None:
    async def body(home: Home) -> None:
        async with mapping(home.host, port=443):
            pass
        assert "AddAnyPortMapping" not in {action for action, _ in home.gateway.calls}
        ((external, _),) = adds(home)
        assert external >= 1024
        assert home.gateway.table == {}

    at_home(UpnpOnly, body)


@pytest.mark.parametrize("protocol", ["pcp", "natpmp"])
def test_09_a_renewal_names_what_was_given_and_the_same_internal_port(protocol: ProtocolName) -> None:
    async def body(home: Home) -> None:
        home.gateway.put(PORT, home.neighbour.ip, PORT, math.inf)
        async with mapping(home.host, protocols=(protocol,)) as maps:
            assert only(maps).external == PORT + 1
            await trio.sleep(HOUR)
            asked = [(internal, external) for _, internal, external, _ in home.gateway.asked]
            assert asked[0] == (PORT, PORT)
            assert set(asked[1:]) == {(PORT, PORT + 1)}
        assert list(home.gateway.table) == [PORT]

    at_home(Gateway, body)


class _TwoServices(UpnpOnly):
    state = "Connected"

    def services(self) -> list[tuple[str, str]]:
        return [(WANPPP, "/ppp"), (WANIP, "/ip")]

    def respond(self, head: str, body: str, client: str) -> bytes | None:
        if "/ppp" in head and "GetStatusInfo" in head:
            answer = f'<u:GetStatusInfoResponse xmlns:u="{WANPPP}"><NewConnectionStatus>Disconnected'
            return self.http(200, self.soap(answer + "</NewConnectionStatus></u:GetStatusInfoResponse>"))
        if "/ppp" in head:
            return self.http(500, self.fault(501))
        return super().respond(head, body, client)

    def soap_getstatusinfo(self, arguments: Values, client: str) -> Values | int:
        return {"NewConnectionStatus": self.state}


class _Up(_TwoServices):
    state = "Up"


@pytest.mark.parametrize("kind", [_TwoServices, _Up])
def test_10_the_first_of_several_services_is_not_connected(kind: type[Gateway]) -> None:
    async def body(home: Home) -> None:
        async with mapping(home.host):
            assert await home.reaches()

    at_home(kind, body)


def test_10_a_gateway_without_a_service_says_so() -> None:
    class Useless(UpnpOnly):
        def services(self) -> list[tuple[str, str]]:
            return []

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            assert maps.mapped == ()
            assert any("no service that opens ports" in each for each in state(maps).problems)

    at_home(Useless, body)


@pytest.mark.parametrize("wanted", ["upnp:rootdevice", WANIP, WANPPP])
def test_11_one_search_target_alone_is_answered(wanted: str) -> None:
    class Picky(UpnpOnly):
        def wants(self, target: str) -> bool:
            return target == wanted

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            assert only(maps).protocol == "upnp"

    at_home(Picky, body)


def test_12_answers_from_another_port() -> None:
    class Elsewhere(UpnpOnly):
        async def reply(self, sock: trio.socket.SocketType, source: tuple[str, int], target: bytes) -> None:
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as other:
                await other.bind((self.inside, 0))
                await other.sendto(self.reply_text(target), source)

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            assert only(maps).protocol == "upnp"

    at_home(Elsewhere, body)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:5000/rootDesc.xml",
        "http://{host}:5000/rootDesc.xml",
        "http://11.0.0.1:5000/rootDesc.xml",
        "http://router:5000/rootDesc.xml",
        "https://{gateway}:5000/rootDesc.xml",
    ],
)
def test_13_a_location_elsewhere_is_not_asked(location: str) -> None:
    class Pointing(UpnpOnly):
        def location(self) -> str:
            return location.format(host=victim[0], gateway=self.inside)

    victim: list[str] = []

    async def body(home: Home) -> None:
        victim.append(home.host.ip)
        heard: list[object] = []
        with home.host, trio.socket.socket() as service:
            await service.bind(("0.0.0.0", 5000))
            service.listen()
            async with trio.open_nursery() as nursery:

                async def accept() -> None:
                    heard.append(await service.accept())

                nursery.start_soon(accept)
                async with mapping(home.host) as maps:
                    assert maps.mapped == ()
                nursery.cancel_scope.cancel()
        assert heard == []
        assert home.gateway.calls == []

    at_home(Pointing, body)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/ctl", "http://11.0.0.1/ctl", "http://router/ctl"])
def test_13_a_control_url_elsewhere_is_not_asked(url: str) -> None:
    class Pointing(UpnpOnly):
        def services(self) -> list[tuple[str, str]]:
            return [(WANIP, url)]

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            assert maps.mapped == ()

    at_home(Pointing, body)


def test_13_an_absolute_url_with_white_space_is_asked() -> None:
    class Spacious(UpnpOnly):
        def services(self) -> list[tuple[str, str]]:
            return [(WANIP, f"\n  http://{self.inside}:{self.http_port}/ctl \n")]

    async def body(home: Home) -> None:
        async with mapping(home.host):
            assert await home.reaches()

    at_home(Spacious, body)


def test_14_http_of_its_own() -> None:
    class Careless(UpnpOnly):
        def http(self, status: int, body: bytes) -> bytes:
            return f"HTTP/1.1 {status}\r\nServer:x\r\nContent-Type:text/xml\r\n\r\n".encode() + b"\r\n" + body

        def respond(self, head: str, body: str, client: str) -> bytes | None:
            assert f"Host: {self.inside}:{self.http_port}" in head
            if head.startswith("POST"):
                assert 'Content-Type: text/xml; charset="utf-8"' in head
                assert body.startswith("<?xml")
                assert "<NewProtocol>" not in body or "<NewProtocol>TCP<" in body
            return super().respond(head, body, client)

    async def body(home: Home) -> None:
        async with mapping(home.host):
            assert await home.reaches()

    at_home(Careless, body)


@pytest.mark.parametrize("external", ["", "0.0.0.0", "10.7.7.7", "100.64.7.7", "nonsense"])
def test_15_the_external_address_is_what_the_gateway_says_and_no_more(external: str) -> None:
    """The node decides whether to publish it."""

    async def body(home: Home) -> None:
        home.gateway.external = external
        async with mapping(home.host) as maps:
            told = only(maps).ip
            assert told is None if external in ("", "0.0.0.0", "nonsense") else str(told) == external

    at_home(UpnpOnly, body)


@pytest.mark.parametrize("speaks", ["natpmp", "pcp"])
def test_16_one_of_two_protocols_is_spoken(speaks: ProtocolName) -> None:
    class One(Gateway):
        upnp = False
        natpmp = speaks == "natpmp"
        pcp = speaks == "pcp"

        def unsupported_natpmp(self) -> bytes | None:
            return bytes([2, 128, 0, 1]) + bytes(4) + self.epoch().to_bytes(4, "big") + bytes(12)

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            assert only(maps).protocol == speaks

    at_home(One, body)


def test_17_an_answer_with_another_port_is_dropped() -> None:
    class Cut(Gateway):
        pcp = upnp = False

        def answer_natpmp(self, data: bytes, client: str) -> bytes | None:
            answer = super().answer_natpmp(data, client)
            assert answer is not None
            return answer if data[1] == 0 else answer[:8] + b"\0" + answer[9:]

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            assert maps.mapped == ()

    at_home(Cut, body)


@pytest.mark.slow("hours of renewals")
def test_18_renewals_are_refused() -> None:
    class Moody(Gateway):
        natpmp = upnp = False

        def answer_pcp(self, data: bytes, client: str) -> bytes | None:
            if data[1] == 1 and any(data[4:8]) and self.entry(PORT) is not None:
                return self.pcp_head(data, 8, 30) + data[24:]
            return super().answer_pcp(data, client)

    async def body(home: Home) -> None:
        async with mapping(home.host):
            for _ in range(6):
                await trio.sleep(HOUR + 10)
                assert await home.reaches()  # mapped anew after its lifetime
        assert home.gateway.table == {}

    at_home(Moody, body)


def test_19_rules_are_made_and_nothing_passes() -> None:
    class Walled(Gateway):
        def forward(self, port: int, client: str, internal: int, expires: float) -> None:
            pass

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            assert only(maps).external == PORT
            assert not await home.reaches()

    at_home(Walled, body)


@pytest.mark.parametrize("protocol", ["pcp", "natpmp", "upnp"])
def test_20_what_the_gateway_forgets_is_asked_for_again(protocol: ProtocolName) -> None:
    async def body(home: Home) -> None:
        async with mapping(home.host, protocols=(protocol,)):
            await trio.sleep(60)
            home.gateway.restart()
            assert not await home.reaches()
            await trio.sleep(600)
            assert await home.reaches()

    at_home(Gateway, body)


class _Moves(UpnpOnly):
    """Its HTTP server has another port after each start, as miniupnpd's without a configured port."""

    running: trio.CancelScope

    async def serve_http(self, task_status: trio.TaskStatus[None]) -> None:
        while True:
            with trio.CancelScope() as self.running:
                await super().serve_http(task_status)
            task_status = trio.TASK_STATUS_IGNORED

    def move(self) -> None:
        self.http_port += 1
        self.running.cancel()

    def restart(self) -> None:
        super().restart()
        self.move()


class _Renames(UpnpOnly):
    """Its service has another URL after each start."""

    starts = 0
    otherwise: bytes | None = None

    def restart(self) -> None:
        super().restart()
        self.starts += 1

    def services(self) -> list[tuple[str, str]]:
        return [(WANIP, f"/{self.starts}/ctl")]

    def respond(self, head: str, body: str, client: str) -> bytes | None:
        if head.startswith("POST ") and not head.startswith(f"POST /{self.starts}/"):
            return self.otherwise
        return super().respond(head, body, client)


class _NotFound(_Renames):
    otherwise = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("kind", [_Moves, _Renames, _NotFound], ids=["refused", "silent", "not found"])
def test_20_a_service_that_is_elsewhere_after_a_restart_is_found_there(kind: type[Gateway]) -> None:
    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            await trio.sleep(60)
            home.gateway.restart()
            assert not await home.reaches()
            await trio.sleep(600)
            assert await home.reaches()
            assert (only(maps).protocol, state(maps).protocols) == ("upnp", ("upnp",))
        assert home.gateway.table == {}

    at_home(kind, body)


def test_20_what_stands_is_renewed_and_deleted_where_the_service_is_now() -> None:
    """The restart of the service alone leaves the router's rules as they are."""

    async def body(home: Home) -> None:
        gateway: Any = home.gateway
        async with mapping(home.host):
            for _ in range(2):
                gateway.move()
                await trio.sleep(HOUR / 2)
                assert gateway.table[PORT].expires >= trio.current_time() + HOUR / 2
            gateway.move()
            await trio.sleep(HOUR / 4)
        assert gateway.table == {}

    at_home(_Moves, body)


class _Deaf(UpnpOnly):
    """It is found, but carries out no request."""

    answer: bytes | None = None
    searches = 0

    def respond(self, head: str, body: str, client: str) -> bytes | None:
        self.searches += head.startswith("GET ")
        if "PortMapping" in head:
            self.asked.append(("upnp", PORT, PORT, 0))
            return self.answer
        return super().respond(head, body, client)


class _Broken(_Deaf):
    answer = _NotFound.otherwise


@pytest.mark.parametrize("kind", [_Deaf, _Broken], ids=["silent", "not found"])
def test_a_gateway_that_is_found_and_never_does_anything_is_left_alone(kind: type[Gateway]) -> None:
    """It is asked again, after a new search, after one minute, then after two, and so on."""

    async def body(home: Home) -> None:
        gateway: Any = home.gateway
        async with mapping(home.host):
            await trio.sleep(HOUR / 3)
            assert len(gateway.asked) in (5, 10)  # one question each time, or two
            assert gateway.searches == 6
            assert gateway.table == {}

    at_home(kind, body)


def test_20_a_restart_is_told_once_and_concerns_all_mappings() -> None:
    async def body(home: Home) -> None:
        leases = [Lease(Transport.TCP, port, nonce=bytes(12), choose=lambda: 5000) for port in (PORT, PORT + 1)]
        client = NatPmpClient(ip_address(home.host.ip), ip_address(home.gateway.inside))

        async def find() -> Client:
            return client

        with home.host:
            async with trio.open_nursery() as nursery:
                keeper = Keeper({"natpmp": find}, leases, goodbye=5)
                nursery.start_soon(keeper.run)
                await trio.sleep(60)
                assert sorted(home.gateway.table) == [PORT, PORT + 1]
                home.gateway.restart()
                await trio.sleep(600)
                assert sorted(home.gateway.table) == [PORT, PORT + 1]
                nursery.cancel_scope.cancel()
        assert home.gateway.table == {}

    at_home(Gateway, body)


def _notify(nts: str, boot: str = "") -> bytes:
    return f"NOTIFY * HTTP/1.1\r\nNTS: {nts}\r\n{boot}\r\n".encode()


@pytest.mark.parametrize(
    ("port", "group", "said"),
    [
        (5350, "224.0.0.1", [bytes([0, 128, 0, 0]) + bytes(8)]),
        (5350, "224.0.0.1", [bytes([2, 128]) + bytes(22)]),
        (1900, "239.255.255.250", [_notify("ssdp:byebye")]),
        (1900, "239.255.255.250", [_notify("ssdp:alive", f"BOOTID.UPNP.ORG: {n}\r\n") for n in (1, 2)]),
    ],
    ids=["natpmp", "pcp", "byebye", "bootid"],
)
def test_20_what_the_gateway_announces_is_looked_at_at_once(port: int, group: str, said: list[bytes]) -> None:
    async def body(home: Home) -> None:
        async with mapping(home.host):
            await trio.sleep(60)
            home.gateway.restart()
            with home.gateway.router, trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                inside = ip_address(home.gateway.inside).packed
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
                await sock.bind((home.gateway.inside, 5351 if port == 5350 else 0))
                sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_MULTICAST_IF, inside)
                for each in said:
                    await sock.sendto(each, (group, port))
            await trio.sleep(1)
            assert await home.reaches()
        assert home.gateway.table == {}

    at_home(_Multicast, body)


def test_20_who_is_not_the_gateway_announces_nothing() -> None:
    async def body(home: Home) -> None:
        async with mapping(home.host):
            await trio.sleep(60)
            before = len(home.gateway.asked)
            with home.neighbour, trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                await sock.bind(("0.0.0.0", 5351))
                for _ in range(100):
                    await sock.sendto(bytes([2, 128]) + bytes(22), ("224.0.0.1", 5350))
                    await sock.sendto(_notify("ssdp:byebye"), ("239.255.255.250", 1900))
            await trio.sleep(60)
            assert len(home.gateway.asked) == before

    at_home(Gateway, body)


class _Multicast(Gateway):
    """Its socket for requests shares the port, so that announcements can be sent from it."""

    reusable = True


def test_21_denied_until_the_user_allows_it(caplog: pytest.LogCaptureFixture) -> None:
    class Strict(UpnpOnly):
        allowed = False

        def soap_addportmapping(self, arguments: Values, client: str) -> Values | int:
            self.asked.append(("upnp", PORT, PORT, 0))
            return super().soap_addportmapping(arguments, client) if self.allowed else 606

    async def body(home: Home) -> None:
        gateway: Any = home.gateway
        with caplog.at_level(logging.WARNING):
            async with mapping(home.host) as maps:
                await trio.sleep(HOUR - 60)
                assert len(home.gateway.asked) == 1
                assert "606" in state(maps).problems[0]
                gateway.allowed = True
                await trio.sleep(120)
                assert await home.reaches()
        assert len([each for each in caplog.records if "allow it in the router's settings" in each.message]) == 1

    at_home(Strict, body)


def test_22_a_mapper_for_each_interface_with_a_gateway() -> None:
    async def body(home: Home) -> None:
        other = home.net.lan("office")
        other.attach(home.host)
        async with mapping(home.host) as maps:
            assert [each.interface for each in maps.gateways] == [home.host.interfaces[0].name]
            assert await home.reaches()

    at_home(Gateway, body)


class _Slow(Gateway):
    delay = 4.0


class _SlowUpnp(_Slow):
    natpmp = pcp = False


@pytest.mark.parametrize("kind", [_Slow, _SlowUpnp])
def test_23_a_slow_gateway_is_waited_for(kind: type[Gateway]) -> None:
    async def body(home: Home) -> None:
        async with mapping(home.host, settled=False) as maps:
            assert maps.mapped == ()
            await maps.wait_settled()
            assert await home.reaches()

    at_home(kind, body)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_gateway_that_never_answers_again_holds_nobody_up() -> None:
    class Dead(Gateway):
        dead = False

        def answer_udp(self, data: bytes, client: str) -> bytes | None:
            return None if self.dead else super().answer_udp(data, client)

    async def body(home: Home) -> None:
        gateway: Any = home.gateway
        async with mapping(home.host, protocols=("natpmp",)):
            gateway.dead = True
            left_at = trio.current_time()
        assert trio.current_time() - left_at <= 5.1

    at_home(Dead, body)


@pytest.mark.slow("sixty cancellations a protocol")
@pytest.mark.parametrize(("protocol", "first"), [("pcp", 0.2), ("natpmp", 0.2), ("upnp", 0.3)])
def test_cancelled_at_any_moment_it_leaves_nothing_behind(protocol: ProtocolName, first: float) -> None:
    async def body(home: Home) -> None:
        made = 0
        for step in range(60):
            maps = PortMaps(SimulatedHost(home.host), {4: PORT}, protocols=(protocol,), goodbye=5)
            with home.host, trio.move_on_after(first + step / 300):
                await maps.run()
            made += len(home.gateway.asked)
            await trio.sleep(1)
            assert home.gateway.table == {}, step
        assert made

    at_home(Gateway, body)


@pytest.mark.parametrize(
    "document",
    [
        b"<root>" + b"x" * (1 << 20) + b"</root>",
        b'<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><root>&c;</root>',
        b"<root>" * 10_000,
        b"\0" * 1000,
    ],
    ids=["megabytes", "entities", "deep", "zeros"],
)
def test_bombs_cost_the_gateway_its_turn_alone(document: bytes) -> None:
    class Bomb(Gateway):
        pcp = False

        def description(self) -> bytes:
            return document

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            assert only(maps).protocol == "natpmp"
            assert await home.reaches()
            await trio.sleep(10)
            assert state(maps).protocols == ("natpmp",)

    at_home(Bomb, body)


def test_two_routers() -> None:
    """The gateway of the host's routes is used; a second router that answers to a search does not replace it."""

    async def body(home: Home) -> None:
        heard: list[bytes] = []

        async def second_router(task_status: trio.TaskStatus[None]) -> None:
            with home.neighbour, trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                await sock.bind(("0.0.0.0", 1900))
                group = bytes([239, 255, 255, 250]) + bytes(map(int, home.neighbour.ip.split(".")))
                sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_ADD_MEMBERSHIP, group)
                task_status.started()
                while True:
                    data, source = await sock.recvfrom(2000)
                    heard.append(data)
                    answer = f"HTTP/1.1 200 OK\r\nLOCATION: http://{home.neighbour.ip}:5000/\r\n\r\n"
                    await sock.sendto(answer.encode(), source)

        async with trio.open_nursery() as nursery:
            await nursery.start(second_router)
            async with mapping(home.host):
                assert await home.reaches()
            nursery.cancel_scope.cancel()
        assert heard

    at_home(UpnpOnly, body)


def test_the_machine_slept() -> None:
    """Its leases went on during the sleep, so they are renewed at once."""

    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            await trio.sleep(60)
            maps.look()
            before = len(home.gateway.asked)
            home.host.clock_offset += 7200
            maps.look()
            await trio.sleep(1)
            assert len(home.gateway.asked) == before + 1
            home.host.clock_offset -= 7200  # a clock set back causes no renewal
            maps.look()
            await trio.sleep(1)
            assert len(home.gateway.asked) == before + 1
            assert await home.reaches()

    at_home(Gateway, body)


@pytest.mark.slow("hours of renewals")
@pytest.mark.parametrize("protocol", ["pcp", "natpmp", "upnp"])
@pytest.mark.parametrize("jump", [3600.0, 4e8])
def test_a_clock_that_jumps_during_a_lease_changes_no_lease(jump: float, protocol: ProtocolName) -> None:
    """A jump forward looks like a sleep of the machine, and costs one extra renewal; a jump back costs none.

    After either, renewals come at the usual times.
    """

    async def body(home: Home) -> None:
        async with mapping(home.host, protocols=(protocol,)) as maps:
            for sign in (1, -1, -1, 1):
                await trio.sleep(60)
                home.host.clock_offset += sign * jump
                before = len(home.gateway.asked)
                maps.look()
                await trio.sleep(10)
                assert len(home.gateway.asked) - before == (sign > 0)
                for _ in range(20):
                    await trio.sleep(7 * 60)
                    entry = home.gateway.entry(PORT)
                    assert entry is not None
                    assert entry.expires - trio.current_time() >= 1790  # half of the granted hour
                assert await home.reaches()
                assert len(home.gateway.asked) - before <= (sign > 0) + 5
        assert home.gateway.table == {}

    at_home(Gateway, body)


def test_an_address_that_is_gone_takes_its_keeper_with_it() -> None:
    async def body(home: Home) -> None:
        async with mapping(home.host) as maps:
            interface = home.host.interfaces[0]
            home.host.remove_address(interface.addresses[0][0])
            maps.look()
            await trio.sleep(10)
            assert maps.gateways == ()
            assert maps.mapped == ()

    at_home(Gateway, body)


def test_other_forwards_of_the_router_stay() -> None:
    async def body(home: Home) -> None:
        assert home.gateway.router.nat is not None
        home.gateway.router.nat.add_forward(TCP, 8080, (home.neighbour.ip, 80))
        home.gateway.put(9090, home.host.ip, 9090, math.inf)
        async with mapping(home.host):
            pass
        assert list(home.gateway.table) == [9090]

    at_home(UpnpOnly, body)
