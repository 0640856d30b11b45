"""`python -m services.storage`: the service in a process of its own."""

from services.shared.run import run
from services.storage.service import StorageService

if __name__ == "__main__":
    run(StorageService)
