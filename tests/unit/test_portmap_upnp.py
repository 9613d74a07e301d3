"""What is read from UPnP gateways (search responses, descriptions, SOAP), and what is refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from warpgate_trio.errors import PortMapMalformed, PortMapRefused
from warpgate_trio.portmap import igd, ssdp, xml
from warpgate_trio.portmap.client import Gone
from warpgate_trio.portmap.ssdp import Url

LOCAL, GATEWAY = ip_address("192.168.1.2"), ip_address("192.168.1.1")
LOCATION = Url(GATEWAY, 5000, "/rootDesc.xml")
WANIP = "urn:schemas-upnp-org:service:WANIPConnection:1"


def service(control: str, kind: str = WANIP) -> str:
    return f"<service><serviceType>{kind}</serviceType><controlURL>{control}</controlURL></service>"


def description(*services: str, base: str = "") -> bytes:
    text = f"<URLBase>{base}</URLBase>" if base else ""
    device = "<device><deviceList><device><serviceList>" + "".join(services) + "</serviceList></device></deviceList>"
    return f'<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">{text}{device}</device></root>'.encode()


class TestSearch:
    def test_golden(self) -> None:
        assert ssdp.search("upnp:rootdevice") == (
            b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n"
            b'MAN: "ssdp:discover"\r\nMX: 1\r\nST: upnp:rootdevice\r\n\r\n'
        )

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 200 OK\r\nST: x\r\nLOCATION: http://192.168.1.1/a\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nst:x\r\nLocation:http://192.168.1.1/a",  # no space, and no end of the headers
            b"HTTP/1.0 200 \nST: x\nlocation:   http://192.168.1.1/a  \n\n",
        ],
    )
    def test_answers_are_read_leniently(self, data: bytes) -> None:
        assert ssdp.parse_reply(data) == ssdp.Reply("http://192.168.1.1/a", "x")

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "not a search answer"),
            (b"NOTIFY * HTTP/1.1\r\nLOCATION: http://192.168.1.1/\r\n\r\n", "not a search answer"),
            (b"HTTP/1.1 404 No\r\nLOCATION: http://192.168.1.1/\r\n\r\n", "not a search answer"),
            (b"HTTP/1.1 200 OK\r\nST: x\r\n\r\n", "no LOCATION header"),
            (b"HTTP/1.1 200 OK\r\nLOCATION: " + b"a" * 3000, "3027 bytes"),
        ],
    )
    def test_what_is_no_answer(self, data: bytes, why: str) -> None:
        with pytest.raises(PortMapMalformed, match=why):
            ssdp.parse_reply(data)


class TestLocation:
    @pytest.mark.parametrize("text", ["http://192.168.1.1:5000/rootDesc.xml", " HTTP://192.168.1.1:5000/rootDesc.xml "])
    def test_the_gateways(self, text: str) -> None:
        assert ssdp.judge_location(text, gateway=GATEWAY, local=LOCAL, prefix=24) == LOCATION

    def test_another_router_of_the_network(self) -> None:
        url = ssdp.judge_location("http://192.168.1.9/", gateway=GATEWAY, local=LOCAL, prefix=24)
        assert url == Url(ip_address("192.168.1.9"), 80, "/")

    def test_a_gateway_outside_of_our_network(self) -> None:
        gateway = ip_address("10.0.0.1")
        assert ssdp.judge_location("http://10.0.0.1/", gateway=gateway, local=LOCAL, prefix=32).ip == gateway

    @pytest.mark.parametrize("control", ["/ctl", "http://[fe80::1]:5000/ctl", "http://[fe80::1%25eth9]:5000/ctl"])
    @pytest.mark.parametrize("base", ["", "http://[fe80::1]:5000/"])
    def test_a_link_local_one_is_on_our_interface_whatever_it_says(self, control: str, base: str) -> None:
        gateway, local = ip_address("fe80::1"), ip_address("2001:db8::2")
        url = ssdp.judge_location("http://[fe80::1%7]:5000/", gateway=gateway, local=local, prefix=64, index=3)
        assert (url.address, url.authority) == (("fe80::1%3", 5000), "[fe80::1]:5000")
        (found,) = igd.read_description(description(service(control), base=base), url)
        assert (found.control.address, found.control.authority) == (("fe80::1%3", 5000), "[fe80::1]:5000")

    def test_of_two_gateways_on_the_link_ours_alone(self) -> None:
        gateway, local = ip_address("fe80::1"), ip_address("2001:db8::2")
        with pytest.raises(PortMapMalformed):
            ssdp.judge_location("http://[fe80::2]:5000/", gateway=gateway, local=local, prefix=64, index=3)
        url = ssdp.judge_location("http://[2001:db8::1]/", gateway=gateway, local=local, prefix=64, index=3)
        assert url.address == ("2001:db8::1", 80)

    @pytest.mark.parametrize(
        "text",
        [
            "http://127.0.0.1:5000/rootDesc.xml",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://192.168.1.2:9200/",  # this host itself
            "http://192.168.1.255/",
            "http://192.168.1.0/",
            "http://192.168.2.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://239.255.255.250/",
            "http://0.0.0.0/",
            "http://8.8.8.8/",
            "http://router.lan/",
            "http://localhost/",
            "http://2130706433/",
            "http://0x7f.1/",
            "https://192.168.1.1/",
            "ftp://192.168.1.1/",
            "http://user@192.168.1.1/",
            "http://192.168.1.1:0/",
            "http://192.168.1.1:99999/",
            "http://192.168.1.1/a b",
            "http://192.168.1.1/\r\nHost: x",
            "http://192.168.1.1/" + "a" * 600,
            "http://[192.168.1.1/",
            "/rootDesc.xml",
            "",
        ],
    )
    def test_nobody_else(self, text: str) -> None:
        with pytest.raises(PortMapMalformed):
            ssdp.judge_location(text, gateway=GATEWAY, local=LOCAL, prefix=24)


class TestDescription:
    @pytest.mark.parametrize(
        ("control", "base", "expected"),
        [
            ("/ctl/IPConn", "", Url(GATEWAY, 5000, "/ctl/IPConn")),
            ("ctl/IPConn", "", Url(GATEWAY, 5000, "/ctl/IPConn")),
            ("/ctl?a=b", "", Url(GATEWAY, 5000, "/ctl?a=b")),
            ("\n  /ctl  ", "http://192.168.1.1:5431 ", Url(GATEWAY, 5431, "/ctl")),
            ("http://192.168.1.1:49152/ctl", "", Url(GATEWAY, 49152, "/ctl")),
        ],
    )
    def test_where_a_service_is(self, control: str, base: str, expected: Url) -> None:
        assert igd.read_description(description(service(control), base=base), LOCATION) == [
            igd.Service(WANIP, expected)
        ]

    def test_prefixes_white_space_and_zeros_do_not_matter(self) -> None:
        data = description(service("/ctl")).replace(b"<service", b"<x:service").replace(b"</service", b"</x:service")
        data = data.replace(b"<root ", b'<root xmlns:x="y" ')
        assert len(igd.read_description(b"\r\n " + data + b"\0\n", LOCATION)) == 1

    def test_services_that_open_no_ports_are_left_out(self) -> None:
        data = description(service("/a", "urn:schemas-wifialliance-org:service:WFAWLANConfig:1"))
        assert igd.read_description(data, LOCATION) == []

    def test_no_more_than_a_few_services_are_asked(self) -> None:
        data = description(*(service(f"/{n}") for n in range(100)))
        assert len(igd.read_description(data, LOCATION)) == igd.MAX_SERVICES

    @pytest.mark.parametrize(
        ("control", "base"),
        [
            ("http://192.168.1.3/ctl", ""),
            ("http://127.0.0.1/ctl", ""),
            ("http://router/ctl", ""),
            ("//192.168.1.3/ctl", ""),
            ("/ctl", "http://192.168.1.3/"),
            ("/ctl", "http://127.0.0.1/"),
        ],
    )
    def test_another_host_is_not_asked(self, control: str, base: str) -> None:
        with pytest.raises(PortMapMalformed):
            igd.read_description(description(service(control), base=base), LOCATION)

    def test_of_two_services_the_one_elsewhere_is_left_out(self) -> None:
        data = description(service("http://192.168.1.3/ctl"), service("/ctl"))
        assert [each.control.target for each in igd.read_description(data, LOCATION)] == ["/ctl"]


class TestXml:
    @pytest.mark.parametrize(
        "data",
        [
            b'<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><root>&c;</root>',
            b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><root/>',
            b'<!DOCTYPE a [<!ENTITY b SYSTEM "http://127.0.0.1/">]><root>&b;</root>',
            b"<root>&b;</root>",
            b"<root>",
            b"",
            b"<a></b>",
            b'<?xml version="1.0" encoding="no-such"?><a/>',
            b"<a>" * 40 + b"</a>" * 40,
            b"<a>" + b"<b/>" * 5000 + b"</a>",
            b"<a>" + b" " * xml.MAX_DOCUMENT + b"</a>",
        ],
        ids=str,
    )
    def test_what_is_refused(self, data: bytes) -> None:
        with pytest.raises(PortMapMalformed):
            xml.parse(data)

    def test_entities_of_xml_itself_are_read(self) -> None:
        assert xml.parse(b"<a>&lt;&amp;&#65;</a>").text == "<&A"


class TestSoap:
    def test_golden(self) -> None:
        assert igd.envelope(WANIP, "DeletePortMapping", {"NewExternalPort": "4433", "NewRemoteHost": "<&>"}) == (
            b'<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
            b's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:DeletePortMapping '
            b'xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"><NewExternalPort>4433</NewExternalPort>'
            b"<NewRemoteHost>&lt;&amp;&gt;</NewRemoteHost></u:DeletePortMapping></s:Body></s:Envelope>\r\n"
        )

    def test_an_answer(self) -> None:
        data = (
            b"<Envelope><Body><m:AResponse xmlns:m='x'><New>1</New><Other> 2 </Other></m:AResponse></Body></Envelope>"
        )
        assert igd.read_answer(200, data, "A") == {"New": "1", "Other": "2"}

    @pytest.mark.parametrize(
        ("status", "data", "code"),
        [
            (500, b"<e><UPnPError><errorCode>718</errorCode></UPnPError></e>", 718),
            (200, b"<e><UPnPError><errorCode>718</errorCode></UPnPError></e>", 718),
            (500, b"<e><UPnPError><errorCode>x</errorCode></UPnPError></e>", 500),
            (500, b"", 500),
            (401, b"<html>no</html>", 401),
        ],
    )
    def test_a_refusal(self, status: int, data: bytes, code: int) -> None:
        with pytest.raises(PortMapRefused) as refused:
            igd.read_answer(status, data, "A")
        assert refused.value.code == code

    @pytest.mark.parametrize("status", [404, 410])
    @pytest.mark.parametrize("data", [b"", b"<html>no</html>"])
    def test_of_who_has_no_such_service(self, status: int, data: bytes) -> None:
        with pytest.raises(Gone, match=f"HTTP {status}"):
            igd.read_answer(status, data, "A")

    def test_upnps_own_404_is_a_refusal(self) -> None:
        with pytest.raises(PortMapRefused):
            igd.read_answer(404, b"<e><UPnPError><errorCode>404</errorCode></UPnPError></e>", "A")

    @pytest.mark.parametrize("data", [b"", b"<a/>", b"<BResponse/>"])
    def test_what_is_no_answer(self, data: bytes) -> None:
        with pytest.raises(PortMapMalformed):
            igd.read_answer(200, data, "A")
