"""`python -m services.broker`: the broker alone."""

from services.broker.service import BrokerService
from services.shared.run import run

if __name__ == "__main__":
    run(BrokerService)
