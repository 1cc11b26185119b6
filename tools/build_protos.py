"""Compile the schema: src/oarlock/api/proto/schema/*.proto -> src/oarlock/api/proto/schema.bin (a FileDescriptorSet).

Run it after every change of a .proto file, with grpcio-tools installed (dependency group "schema"):

    python tools/build_protos.py            write the file
    python tools/build_protos.py --check    exit 1 if the file is not up to date
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

PROTO = Path(__file__).resolve().parent.parent / "src" / "oarlock" / "api" / "proto"
OUTPUT = PROTO / "schema.bin"


def compile_schema() -> bytes:
    """The compiled schema. Raises `RuntimeError` if protoc refuses it."""
    from grpc_tools import protoc

    sources = sorted(str(path.name) for path in (PROTO / "schema").glob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "schema.bin"
        arguments = [
            "protoc",
            f"-I{PROTO / 'schema'}",
            f"-I{files('grpc_tools').joinpath('_proto')}",
            "--include_imports",
            f"--descriptor_set_out={output}",
            *sources,
        ]
        status = protoc.main(arguments)
        if status != 0:
            raise RuntimeError(f"protoc ended with status {status}")
        return output.read_bytes()


def main() -> int:
    compiled = compile_schema()
    if "--check" in sys.argv[1:]:
        if OUTPUT.read_bytes() == compiled:
            return 0
        sys.stderr.write(f"{OUTPUT} is not up to date: run tools/build_protos.py\n")
        return 1
    OUTPUT.write_bytes(compiled)
    sys.stdout.write(f"{OUTPUT}: {len(compiled)} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
