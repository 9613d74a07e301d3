"""What this machine's NATs do, and how to ask: STUN, the NAT profile, port prediction, probes."""
