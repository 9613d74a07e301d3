"""Fixed identities for tests; golden bytes were made with ALICE and BOB."""

from __future__ import annotations

from typing import Final

from warpgate_trio.identity import Identity

ALICE_SEED: Final = bytes(range(32))
BOB_SEED: Final = bytes(range(32, 64))
ALICE: Final = Identity.from_seed(ALICE_SEED)
BOB: Final = Identity.from_seed(BOB_SEED)
CAROL: Final = Identity.from_seed(b"carol".ljust(32, b"\0"))
MALLORY: Final = Identity.from_seed(b"mallory".ljust(32, b"\0"))
