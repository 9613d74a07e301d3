"""Ports that a router opens when it is asked to: NAT-PMP, PCP and UPnP IGD, their codecs and who keeps mappings."""
