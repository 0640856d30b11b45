"""A protoc plugin that writes `_pb2_grpc.py` files with the generator built into grpcio-tools.

buf calls plugins as programs, and grpcio-tools ships its gRPC generator only inside its protoc.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

__all__ = ["generate", "main"]


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """Answer a code generator request with one `_pb2_grpc.py` for each file that has a service."""
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    wanted = set(request.file_to_generate)
    files = sorted(f.name for f in request.proto_file if f.name in wanted and f.service)
    if not files:
        return response
    with tempfile.TemporaryDirectory() as folder:
        descriptors = Path(folder) / "request.binpb"
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        out = Path(folder) / "out"
        out.mkdir()
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--descriptor_set_in={descriptors}",
            f"--grpc_python_out={out}",
            *files,
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            response.error = (
                f"the gRPC generator of grpcio-tools ended with status {result.returncode}: "
                f"{result.stderr.strip()}"
            )
            return response
        for path in sorted(out.rglob("*.py")):
            name = path.relative_to(out).as_posix()
            response.file.add(name=name, content=path.read_text(encoding="utf-8"))
    return response


def main() -> None:
    """Read the request from stdin and write the answer to stdout, as protoc plugins do."""
    request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    sys.stdout.buffer.write(generate(request).SerializeToString())


if __name__ == "__main__":
    main()
