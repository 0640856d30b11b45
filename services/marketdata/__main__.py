"""`python -m services.marketdata`: the service in a process of its own."""

from services.marketdata.service import MarketDataService
from services.shared.run import run

if __name__ == "__main__":
    run(MarketDataService)
