"""The servers that come with the package; each is a sans-IO core with a thin Trio shell.

Import the module of the server that you mean (`warpgate_trio.servers.rendezvous`, ...): this package imports none of
them, so that a client which needs a server's frames does not load the server.
"""
