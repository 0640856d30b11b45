from services.shared.run import run
from tests.integration.echo_service.service import EchoService

run(EchoService)
