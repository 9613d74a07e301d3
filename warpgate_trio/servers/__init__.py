"""The servers that come with the package; each is a sans-IO core with a thin Trio shell.

Import the module of the server that is needed (`warpgate_trio.servers.rendezvous`, ...).  This package imports none of
them, so that a client that needs only a server's frames does not load the server.
"""
