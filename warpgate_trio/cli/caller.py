"""Who calls: the identity of `connect` and `ping`."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .exits import UsageProblem

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..config import NodeConfig
    from ..contacts import Callee
    from ..identity import Identity

__all__ = ["caller_identity", "own_address_is_misuse"]

logger: logging.Logger = logging.getLogger(__name__)


def caller_identity(config: NodeConfig, peer: PeerAddress | Callee) -> Identity:
    """The identity that the configuration names; a fresh one where the peer to be called has the user's default key.

    So `listen` and `connect` of one user on one machine need no second key.  A key that the configuration or the
    command line names is what it says.

    Raises:
      IdentityError: the key file cannot be used.
      UsageProblem: the peer to be called has the key that was named.
    """
    from ..identity import Identity, default_key_file

    wanted = config.identity
    if wanted.ephemeral:
        return Identity.generate()
    identity = Identity.load_or_create(wanted.key_file or default_key_file())
    if identity.public_key != peer.public_key:
        return identity
    if wanted.key_file is not None:
        raise UsageProblem("that is this node's own address: the peer has the key that is named here")
    logger.info("that peer has this user's default key: this call has an identity of its own")
    return Identity.generate()


@contextmanager
def own_address_is_misuse() -> Generator[None]:
    """Around a call: the ValueError by which a node refuses its own address is a `UsageProblem`."""
    from ..errors import WarpgateError

    try:
        yield
    except ValueError as error:
        if isinstance(error, WarpgateError):
            raise
        raise UsageProblem(str(error)) from error
