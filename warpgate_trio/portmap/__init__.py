"""Port mappings at routers: the codecs and clients of NAT-PMP, PCP and UPnP IGD, and the tasks that keep mappings."""
