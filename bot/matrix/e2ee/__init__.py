"""End-to-end encryption: the keys of the bot's one device, and the identity that vouches for it.

`encryption.Encryption` is the whole of it towards the rest of `bot.matrix`. Within: `vault` is the file with the keys
and the one thread that touches it, `sums` tell whether it was altered, `machine` and `own_keys` do all that needs no
network, `devices` knows other people's devices, `sharing` encrypts for rooms, `pending` keeps what can't be read yet,
`identity` cross-signs, `verification` compares emoji.

Rules for the next editor. The vault commits before the sync token is stored: whatever a sync brought is either in the
vault, or comes again. All of `vault` and `machine` runs on the vault's thread, since SQLite and the ratchets block.
What can't be encrypted is not sent.
"""

from bot.matrix.e2ee.encryption import Encryption
from bot.matrix.e2ee.identity import judge
from bot.matrix.e2ee.model import Counts, EncryptionSettings, SeenKeys, Settings

__all__ = ["Counts", "Encryption", "EncryptionSettings", "SeenKeys", "Settings", "judge"]
