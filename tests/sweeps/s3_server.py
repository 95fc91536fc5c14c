"""An S3 server on loopback: moto's, which looks first and writes afterwards, served one request at a time."""

from __future__ import annotations

from faulty_server import Faulty, FaultyServer, serve


class Server(FaultyServer):
    """The server as its tests see it."""

    def __init__(self) -> None:
        super().__init__(__file__)
        self.environment = {
            "AWS_ENDPOINT_URL_S3": self.address,
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "canary-of-the-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> None:
        self.ask("PUT", name)


def main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    def body(code: str) -> str:
        return f"<Error><Code>{code}</Code><Message>asked for</Message></Error>"

    serve(Faulty(DomainDispatcherApplication(create_backend_app), body))


if __name__ == "__main__":
    main()
