"""`python -m services.collector`."""

from services.collector.service import CollectorService
from services.shared.run import run

if __name__ == "__main__":
    run(CollectorService)
