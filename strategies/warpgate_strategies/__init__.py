"""The built-in plugins, one module each, found through the entry-point group ``warpgate.strategies`` like others."""
