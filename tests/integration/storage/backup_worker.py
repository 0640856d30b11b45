"""A process of its own that backs up or restores, so that it can be killed.

    python backup_worker.py backup|restore STORE BACKUPS [BACKUP_ID]

prints a line for each change of its progress, and waits for a line on stdin after each, so that
whoever started it says how far it gets.
"""

import asyncio
import sys
from pathlib import Path

from services.storage.backups.create import create_backup
from services.storage.backups.progress import Progress
from services.storage.backups.restore import restore_backup
from services.storage.backups.targets import FolderTarget
from tests.integration.storage.backup_tools import make_keyring, make_settings, open_store


def tell(state: Progress) -> None:
    print(state.phase, state.items_done, flush=True)
    sys.stdin.readline()


async def main(verb: str, store_folder: Path, backups: Path, private: str, backup_id: str) -> None:
    target, settings = FolderTarget(backups), make_settings()
    keyring = make_keyring(private=private)
    async with open_store(store_folder) as store:
        if verb == "backup":
            await create_backup(store, target, settings, keyring, report=tell)
        else:
            await restore_backup(store, target, settings, keyring, backup_id, report=tell)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:6]))
