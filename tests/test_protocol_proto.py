"""Our own grpc_service.proto is compiled and is, call for call and field for field, a part of Triton's service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc_tools
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_tools import protoc
from tritonclient.grpc import service_pb2

PROTO = Path(__file__).parents[1] / "client" / "protocol" / "grpc_service.proto"
SERVICE = "GRPCInferenceService"
CALLS = {"ServerLive", "ServerReady", "ModelReady", "ModelInfer", "ModelStreamInfer"}
THEIRS = service_pb2.DESCRIPTOR


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The compiled file, in a pool of its own: the messages have the names of those of tritonclient."""
    path = tmp_path_factory.mktemp("proto") / "set.bin"
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    status = protoc.main(["", f"-I{PROTO.parent}", f"-I{well_known}", f"--descriptor_set_out={path}", str(PROTO)])
    assert status == 0
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file:
        pool.Add(file)
    return pool.FindFileByName(PROTO.name)


def fields(message: Any) -> dict[str, tuple[Any, ...]]:
    """All that the wire and generated code depend on, by name."""
    plain = descriptor_pb2.DescriptorProto()
    message.CopyToProto(plain)
    choices = [choice.name for choice in plain.oneof_decl]
    return {
        field.name: (
            field.number,
            field.type,
            field.label,
            field.type_name,
            choices[field.oneof_index] if field.HasField("oneof_index") else None,
            field.proto3_optional,
            field.options.SerializeToString(),
        )
        for field in plain.field
    }


def messages(nested: dict[str, Any], inside: str = "") -> dict[str, Any]:
    """By full name, those inside of others too."""
    found = {}
    for name, message in nested.items():
        found[inside + name] = message
        found |= messages(message.nested_types_by_name, f"{inside}{name}.")
    return found


def test_every_message_has_the_fields_of_tritons(ours: Any):
    have, wanted = messages(ours.message_types_by_name), messages(THEIRS.message_types_by_name)
    assert len(have) >= 14
    for name, message in have.items():
        assert fields(message) == fields(wanted[name]), name
        assert message.full_name == wanted[name].full_name
        assert message.GetOptions().map_entry == wanted[name].GetOptions().map_entry
        assert set(message.nested_types_by_name) == set(wanted[name].nested_types_by_name), name


def test_every_call_is_tritons(ours: Any):
    assert ours.package == THEIRS.package
    have, wanted = (file.services_by_name[SERVICE].methods_by_name for file in (ours, THEIRS))
    assert set(have) == CALLS
    for name, call in have.items():
        for side in ("input_type", "output_type"):
            assert getattr(call, side).full_name == getattr(wanted[name], side).full_name
        assert (call.client_streaming, call.server_streaming) == (
            wanted[name].client_streaming,
            wanted[name].server_streaming,
        )


def test_nothing_is_left_over(ours: Any):
    used: set[str] = set()

    def follow(message: Any) -> None:
        if message.full_name not in used:
            used.add(message.full_name)
            for field in message.fields:
                if field.message_type is not None:
                    follow(field.message_type)

    for call in ours.services_by_name[SERVICE].methods:
        follow(call.input_type)
        follow(call.output_type)
    assert used == {message.full_name for message in messages(ours.message_types_by_name).values()}


def test_the_text_is_our_own():
    """Triton's file is under another licence; only names, numbers and types are taken over."""
    text = PROTO.read_text()
    assert "Copyright" not in text and "@@" not in text
