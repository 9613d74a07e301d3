"""Answers of gateways to requests for a port mapping."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from typing import Final

from tests.fuzz.registry import target
from warpgate_trio.address import Transport
from warpgate_trio.errors import PortMapMalformed, PortMapRefused
from warpgate_trio.portmap import announcements, igd, natpmp, pcp, ssdp, xml


def _natpmp() -> list[bytes]:
    return [
        bytes.fromhex("00800000 0000000a cb007105"),
        bytes.fromhex("00820000 0000000a 1151 1152 00000e10"),
        bytes.fromhex("00810002 0000000a 1151 0000 00000000"),
    ]


@target(_natpmp, PortMapMalformed, inputs=20_000)
def natpmp_answers(data: bytes) -> None:
    answer = natpmp.decode(data)
    if isinstance(answer, natpmp.Mapped):
        assert natpmp.encode_map(answer.transport, answer.internal, answer.external, answer.lifetime)


def _pcp() -> list[bytes]:
    head = bytes.fromhex("02810000 00000e10 0000000a") + bytes(12)
    body = bytes(12) + bytes.fromhex("06000000 1151 1152 00000000000000000000ffffcb007105")
    return [head + body, head[:3] + b"\x08" + head[4:] + body, bytes.fromhex("02800000 00000000 0000000a") + bytes(12)]


@target(_pcp, PortMapMalformed, inputs=20_000)
def pcp_answers(data: bytes) -> None:
    answer = pcp.decode(data)
    if isinstance(answer, pcp.Mapped):
        client = ip_address("192.168.1.2")
        assert pcp.encode_map(client, answer.nonce, Transport.TCP, answer.internal, answer.external, answer.lifetime)


_LOCATION: Final = ssdp.Url(IPv4Address("192.168.1.1"), 5000, "/rootDesc.xml")
_DESCRIPTION: Final = b"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><URLBase>http://192.168.1.1:5000</URLBase><device><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/ctl/IPConn</controlURL></service>
</serviceList></device></root>"""
_ANSWER: Final = b"""<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>
<u:GetExternalIPAddressResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">
<NewExternalIPAddress>203.0.113.5</NewExternalIPAddress></u:GetExternalIPAddressResponse></s:Body></s:Envelope>"""
_FAULT: Final = b"""<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault>
<faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>
<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>718</errorCode><errorDescription>ConflictInMapping
</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>"""
_BOMB: Final = b"""<!DOCTYPE a [<!ENTITY b "xxxxxxxx"><!ENTITY c "&b;&b;&b;&b;">]><root>&c;</root>"""


def _reply() -> list[bytes]:
    return [
        b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: http://192.168.1.1:5000/rootDesc.xml\r\nEXT:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nLOCATION:http://127.0.0.1/\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nLOCATION: http://[fe80::1]:80/a?b\r\n\r\n",
    ]


@target(_reply, PortMapMalformed, inputs=10_000)
def ssdp_replies(data: bytes) -> None:
    local, gateway = ip_address("192.168.1.2"), ip_address("192.168.1.1")
    url = ssdp.judge_location(ssdp.parse_reply(data).location, gateway=gateway, local=local, prefix=24)
    assert str(url.ip).startswith("192.168.1.")
    assert url.ip != local


@target(
    lambda: [
        b"NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\nBOOTID.UPNP.ORG: 1\r\n\r\n",
        b"NOTIFY * HTTP/1.1\r\nNTS: ssdp:byebye\r\n\r\n",
        bytes.fromhex("00800000 0000000a cb007105"),
    ],
    inputs=10_000,
)
def gateways_announcements(data: bytes) -> None:
    boots = announcements.Boots()
    for each in (data, data):
        assert boots.is_announcement(each) in (True, False)
        assert announcements.is_announcement(each) in (True, False)


@target(lambda: [_DESCRIPTION, _BOMB], PortMapMalformed, inputs=5_000)
def upnp_descriptions(data: bytes) -> None:
    for service in igd.read_description(data, _LOCATION):
        assert service.control.ip == _LOCATION.ip
        assert igd.envelope(service.kind, "GetStatusInfo", {})


@target(lambda: [_ANSWER, _FAULT, _BOMB], PortMapMalformed, PortMapRefused, inputs=5_000)
def soap_answers(data: bytes) -> None:
    assert len(igd.read_answer(200, data, "GetExternalIPAddress")) <= igd.MAX_VALUES


@target(lambda: [_DESCRIPTION, _ANSWER, _FAULT, _BOMB], PortMapMalformed, inputs=5_000)
def gateways_xml(data: bytes) -> None:
    assert sum(len(each.text) for each in xml.parse(data).iterate()) <= len(data)
