"""Hostile stage programs: each is refused, names file and entry, and nothing of it is run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutset.bundles.open import open_bundle
from cutset.bundles.reading.torch.loading import load_program
from cutset.errors import UnsafeBundle, UnsupportedVersion
from hostile import (
    MODEL_JSON,
    PROGRAM,
    bomb,
    edit_members,
    edit_model_json,
    edit_weights_config,
    members_of,
    nodes_of,
    relist,
    root_of,
)


def refusal(bundle: Path, *, program: str = PROGRAM) -> str:
    """The message with which the program is refused; opening the bundle must still work."""
    opened = open_bundle(bundle)
    with pytest.raises(UnsafeBundle) as caught:
        load_program(opened, int(program[6]))
    assert caught.value.path == program
    assert caught.value.exit_code == 4
    assert program in str(caught.value)
    return str(caught.value)


WEIGHTS_JSON = "data/weights/model_weights_config.json"


class TestMembers:
    @pytest.mark.parametrize(
        "name",
        [
            "data/weights/model.pt",  # torch's legacy weights, a pickle
            "data/constants/model.pt",
            "data/constants/custom_obj_0",
            "data/constants/opaque_obj_0",
            "data/weights/weight_0.pkl",
            "data/aotinductor/model/model.so",
            "models/other.json",
            "extra/notes",
            "data/weights/../../../evil",
            "serialized_exported_program.json",
        ],
    )
    def test_unknown_member(self, bundle: Path, tmp_path: Path, name: str) -> None:
        marker = tmp_path / "was-run"
        edit_members(bundle, lambda members, root: members.update({f"{root}/{name}": bomb(marker)}))
        assert name in refusal(bundle)
        assert not marker.exists()

    @pytest.mark.parametrize("name", ["../evil", "/evil", "elsewhere/evil"])
    def test_member_outside_the_archives_folder(self, bundle: Path, name: str) -> None:
        edit_members(bundle, lambda members, root: members.update({name: b""}))
        assert "evil" in refusal(bundle)

    def test_archive_folder_that_leads_outside(self, bundle: Path) -> None:
        def change(members: dict[str, bytes], root: str) -> None:
            moved = {f"..{name.removeprefix(root)}": data for name, data in members.items()}
            members.clear()
            members.update(moved)

        edit_members(bundle, change)
        assert "'..' is no name" in refusal(bundle)

    def test_pickle_with_code_as_sample_inputs(self, bundle: Path, tmp_path: Path) -> None:
        marker = tmp_path / "was-run"
        edit_members(
            bundle,
            lambda members, root: members.update(
                {f"{root}/data/sample_inputs/model.pt": bomb(marker)}
            ),
        )
        assert "pickled sample inputs" in refusal(bundle)
        assert not marker.exists()

    def test_pickle_with_code_as_a_whole(self, bundle: Path, tmp_path: Path) -> None:
        marker = tmp_path / "was-run"
        (bundle / PROGRAM).write_bytes(bomb(marker))
        relist(bundle)
        assert "not a zip archive" in refusal(bundle)
        assert not marker.exists()

    def test_pickled_weight(self, bundle: Path, tmp_path: Path) -> None:
        marker = tmp_path / "was-run"

        def change(members: dict[str, bytes], root: str) -> None:
            name = f"{root}/data/weights/model_weights_config.json"
            document = json.loads(members[name])
            payload = next(iter(document["config"].values()))
            payload["use_pickle"] = True
            members[f"{root}/data/weights/{payload['path_name']}"] = bomb(marker)
            members[name] = json.dumps(document).encode()

        edit_members(bundle, change)
        assert "is pickled" in refusal(bundle)
        assert not marker.exists()

    def test_zip_bomb(self, bundle: Path) -> None:
        edit_members(
            bundle,
            lambda members, root: members.update({f"{root}/data/weights/weight_0": bytes(1 << 24)}),
            compression=zipfile.ZIP_DEFLATED,
        )
        assert (bundle / PROGRAM).stat().st_size < 1 << 20
        assert "is compressed" in refusal(bundle)

    def test_overlapping_members(self, bundle: Path) -> None:
        file = bundle / PROGRAM
        data = bytearray(file.read_bytes())
        # Central directory entries of two weights: let the second point at the first's data.
        first = data.rindex(b"weight_0") - data.rindex(b"/data/weights/weight_0")
        assert first > 0
        with zipfile.ZipFile(file) as archive:
            infos = {info.filename.rpartition("/")[2]: info for info in archive.infolist()}
        entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"weight_1"))
        data[entry + 42 : entry + 46] = infos["weight_0"].header_offset.to_bytes(4, "little")
        file.write_bytes(bytes(data))
        relist(bundle)
        refusal(bundle)

    @pytest.mark.parametrize(
        "surround",
        [
            lambda data: b"x" + data,
            lambda data: b"#!/bin/sh\n" + data,
            lambda data: data + b"x",
            lambda data: data + b"\0" * (1 << 17),
            lambda data: data[:-2] + b"\4\0more",  # a comment
            lambda data: data[:-2] + b"\1\0more",  # a comment that is longer than it says
            lambda data: data + data,
        ],
    )
    def test_bytes_around_the_archive(
        self, bundle: Path, surround: Callable[[bytes], bytes]
    ) -> None:
        file = bundle / PROGRAM
        file.write_bytes(surround(file.read_bytes()))
        relist(bundle)
        refusal(bundle)

    def test_bytes_between_members(self, bundle: Path) -> None:
        members = members_of(bundle / PROGRAM)
        with (bundle / PROGRAM).open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            for number, (name, data) in enumerate(members.items()):
                if number == 1:
                    stream.write(b"hidden" * 9)
                    archive.start_dir = stream.tell()
                archive.writestr(name, data)
        relist(bundle)
        assert "right after the one before" in refusal(bundle)

    def test_member_that_is_there_twice(self, bundle: Path) -> None:
        members = members_of(bundle / PROGRAM)
        root = root_of(members)
        with (
            pytest.warns(UserWarning, match="Duplicate name"),
            zipfile.ZipFile(bundle / PROGRAM, "a") as archive,
        ):
            archive.writestr(f"{root}/byteorder", b"little")
        relist(bundle)
        assert "twice" in refusal(bundle)

    @pytest.mark.parametrize(
        ("name", "data"),
        [("archive_format", b"pt3"), ("archive_version", b"1"), ("byteorder", b"big")],
    )
    def test_other_archive_format(self, bundle: Path, name: str, data: bytes) -> None:
        edit_members(bundle, lambda members, root: members.update({f"{root}/{name}": data}))
        assert repr(data) in refusal(bundle)

    @pytest.mark.parametrize(
        "name", [MODEL_JSON, "data/weights/model_weights_config.json", "byteorder"]
    )
    def test_missing_member(self, bundle: Path, name: str) -> None:
        edit_members(bundle, lambda members, root: members.pop(f"{root}/{name}") and None)
        assert f"{name!r} is missing" in refusal(bundle)

    def test_missing_weight_bytes(self, bundle: Path) -> None:
        edit_members(bundle, lambda members, root: members.pop(f"{root}/data/weights/weight_0"))
        assert "weight_0" in refusal(bundle)

    def test_damaged_weight(self, bundle: Path) -> None:
        members = members_of(bundle / PROGRAM)
        weight = members[f"{root_of(members)}/data/weights/weight_0"]
        data = (bundle / PROGRAM).read_bytes()
        at = data.index(weight)
        (bundle / PROGRAM).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        relist(bundle)
        assert "CRC" in refusal(bundle)


class TestOperations:
    @pytest.mark.parametrize(
        "target",
        [
            "torch.os.system",
            "torch.ops.aten.__class__.__init__",
            "torch.ops.aten.from_file.default",
            "torch.ops.aten.save.default",
            "torch.ops.aten.set_.source_Storage",
            "torch.ops.aten.empty.memory_format",
            "torch.ops.aten.rand.default",
            "torch.ops.aten.relu.out",
            "torch.ops.aten.relu",
            "torch.ops.aten.relu.default.__call__",
            "torch.ops.prims.inductor_seeds.default",
            "torch.ops.higher_order.cond",
            "torch.ops.mylib.op.default",
            "torch.load",
            "torch.hub.load",
            "torch.utils.cpp_extension.load_inline",
            "_operator.methodcaller",
            "_operator.attrgetter",
            "_operator.pow",
            "_operator.lshift",
            "_operator.__dict__",
            "math.factorial",
            "math.__loader__.load_module",
            "#aoti:op",
            "builtins.eval",
            "os.system",
            "",
        ],
    )
    def test_operation_that_is_not_listed(self, bundle: Path, target: str) -> None:
        edit_model_json(bundle, lambda document: nodes_of(document)[0].update(target=target))
        assert f"operation {target!r} is not on the list" in refusal(bundle)

    def test_listed_name_without_that_overload(self, bundle: Path) -> None:
        target = "torch.ops.aten.relu.nonsense"
        edit_model_json(bundle, lambda document: nodes_of(document)[0].update(target=target))
        assert "is no operation on tensors in torch" in refusal(bundle)

    def test_operation_as_an_argument(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            nodes_of(document)[0]["inputs"][0]["arg"] = {"as_operator": "torch.os.system"}

        edit_model_json(bundle, change)
        assert "as_operator" in refusal(bundle)

    @pytest.mark.parametrize(
        "argument",
        [
            {"as_custom_obj": {"name": "x", "class_fqn": "evil"}},
            {"as_graph": {"name": "x", "graph": {}}},
            {"as_string": "a'); import os; ('"},
            {"as_string": "x" * 300},
            {"as_strings": ["\n"]},
            {"as_int": "1"},
            {"as_int": True},
            {"as_ints": [1, "2"]},
            {"as_ints": 3},
            {"as_float": "1e5"},
            {"as_scalar_type": 99},
            {"as_layout": 1},
            {"as_tensor": {"name": "never_made"}},
            {"as_tensor": {"name": "x; import os"}},
            {"as_tensors": [{"name": 3}]},
            {"as_sym_int": {"as_expr": "s0"}},
            {"as_optional_tensors": [{"as_custom_obj": 1}]},
            {"as_string_to_argument": {"x": {"as_int": 1}}},
            {"as_nested_tensors": [[{"name": "x"}]]},
            {},
            {"as_int": 1, "as_float": 2.0},
            [],
        ],
    )
    def test_argument_that_is_not_permitted(self, bundle: Path, argument: Any) -> None:
        def change(document: dict[str, Any]) -> None:
            nodes_of(document)[0]["inputs"][0]["arg"] = argument

        edit_model_json(bundle, change)
        refusal(bundle)

    def test_name_that_is_code(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            nodes_of(document)[0]["outputs"] = [{"as_tensor": {"name": "a=__import__('os')"}}]

        edit_model_json(bundle, change)
        assert "__import__" in refusal(bundle)

    def test_value_that_is_made_twice(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            nodes = nodes_of(document)
            nodes.insert(1, nodes[0])

        edit_model_json(bundle, change)
        assert "defined twice" in refusal(bundle)

    def test_argument_that_the_operation_lacks(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            nodes_of(document)[0]["inputs"][0]["name"] = "nonsense"

        edit_model_json(bundle, change)
        assert "argument" in refusal(bundle)

    @pytest.mark.parametrize("number", [1 << 63, -(1 << 63) - 1, 10**400])
    def test_number_beyond_64_bits(self, bundle: Path, number: int) -> None:
        def change(document: dict[str, Any]) -> None:
            nodes_of(document)[0]["inputs"][-1]["arg"] = {"as_int": number}

        edit_model_json(bundle, change)
        refusal(bundle)

    def test_list_of_thousands(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            nodes_of(document)[0]["inputs"][-1]["arg"] = {"as_ints": [1] * 4097}

        edit_model_json(bundle, change)
        assert "a list of 4097 entries; at most 4096" in refusal(bundle)

    def test_list_of_millions(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            nodes_of(document)[0]["inputs"][-1]["arg"] = {"as_ints": [1] * 2_000_000}

        edit_model_json(bundle, change)
        assert "has more than 1048576 entries" in refusal(bundle)


class TestFormulas:
    EVIL = "__import__('os').system('touch /tmp/evil')"

    @staticmethod
    def _set_size(document: dict[str, Any], text: str) -> None:
        values = document["graph_module"]["graph"]["tensor_values"]
        name = document["graph_module"]["graph"]["outputs"][0]["as_tensor"]["name"]
        values[name]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}

    @pytest.mark.parametrize(
        "text", [EVIL, "s0.__class__", "Symbol('s0').func(print)", "9**9**9 if 1 else 2", "[1]", ""]
    )
    def test_formula_with_a_call(self, bundle: Path, text: str) -> None:
        edit_model_json(bundle, lambda document: self._set_size(document, text))
        assert "has the formula" in refusal(bundle)

    def test_formula_in_a_number(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            document["graph_module"]["graph"]["sym_int_values"]["n"] = {
                "as_expr": {"expr_str": self.EVIL, "hint": None}
            }

        edit_model_json(bundle, change)
        assert "the value of 'n'" in refusal(bundle)

    def test_range_of_something_else(self, bundle: Path) -> None:
        edit_model_json(
            bundle, lambda document: document["range_constraints"].update({self.EVIL: {}})
        )
        assert "range of" in refusal(bundle)

    def test_guard_with_a_call(self, bundle: Path) -> None:
        edit_model_json(bundle, lambda document: document["guards_code"].append(self.EVIL))
        assert "guard" in refusal(bundle)

    def test_container_that_would_be_imported(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            signature = document["graph_module"]["module_call_graph"][0]["signature"]
            signature["out_spec"] = json.dumps(
                [1, {"type": "os.system", "context": "null", "children_spec": []}]
            )

        edit_model_json(bundle, change)
        assert "container of type 'os.system'" in refusal(bundle)


class TestWeights:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("sizes", [{"as_int": 1 << 40}]),
            ("sizes", [{"as_int": -1}]),
            ("sizes", [{"as_int": True}]),
            ("sizes", [{"as_expr": {"expr_str": "s0"}}]),
            ("strides", [{"as_int": 1 << 30}]),
            ("storage_offset", {"as_int": 1 << 30}),
            ("storage_offset", {"as_int": -1}),
            ("layout", 1),
            ("dtype", 99),
        ],
    )
    def test_shape_beyond_the_stored_bytes(self, bundle: Path, key: str, value: Any) -> None:
        def change(config: dict[str, Any]) -> None:
            meta = config["14.bias"]["tensor_meta"]
            meta[key] = value

        edit_weights_config(bundle, change)
        assert "14.bias" in refusal(bundle)

    @pytest.mark.parametrize("name", ["../weight_0", "weight_0/../x", "custom_obj_0", "weight_"])
    def test_bytes_elsewhere(self, bundle: Path, name: str) -> None:
        edit_weights_config(bundle, lambda config: config["14.bias"].update(path_name=name))
        assert repr(name) in refusal(bundle)

    @pytest.mark.parametrize("length", [1 << 16, (1 << 47)])
    def test_repeated_number_beyond_any_memory(self, bundle: Path, length: int) -> None:
        def change(config: dict[str, Any]) -> None:
            for entry in config.values():
                one = entry["tensor_meta"]
                one["sizes"] = [{"as_int": length}] * 2
                one["strides"] = [{"as_int": 0}] * 2

        edit_weights_config(bundle, change)
        assert "claims" in refusal(bundle)

    def test_long_view_of_one_number_takes_no_memory(self, bundle: Path) -> None:
        def change(config: dict[str, Any]) -> None:
            meta = config["14.bias"]["tensor_meta"]
            meta["sizes"], meta["strides"] = [{"as_int": 1 << 20}], [{"as_int": 0}]

        edit_weights_config(bundle, change)
        assert "cannot be called like this" in refusal(bundle)


class TestSignature:
    def test_program_that_changes_its_weights(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            (spec,) = document["graph_module"]["signature"]["output_specs"]
            name = spec["user_output"]["arg"]["as_tensor"]["name"]
            spec.clear()
            spec["buffer_mutation"] = {"arg": {"name": name}, "buffer_name": "b"}

        edit_model_json(bundle, change)
        assert "changes the program's weights" in refusal(bundle)

    def test_call_that_writes_to_a_weight_through_a_view(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            weight = next(
                spec["parameter"]["arg"]["name"]
                for spec in document["graph_module"]["signature"]["input_specs"]
                if "parameter" in spec
            )

            def node(target: str, source: str, result: str) -> dict[str, Any]:
                return {
                    "target": f"torch.ops.aten.{target}.default",
                    "inputs": [{"name": "self", "arg": {"as_tensor": {"name": source}}}],
                    "outputs": [{"as_tensor": {"name": result}}],
                    "metadata": {},
                }

            nodes_of(document)[:0] = [
                node("detach", weight, "a_view"),
                node("neg_", "a_view", "negated"),
            ]

        edit_model_json(bundle, change)
        assert "'torch.ops.aten.neg_.default' changes a tensor in place" in refusal(bundle)

    def test_call_that_writes_to_an_input(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            given = document["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]
            node = {
                "target": "torch.ops.aten.neg_.default",
                "inputs": [{"name": "self", "arg": {"as_tensor": {"name": given}}}],
                "outputs": [{"as_tensor": {"name": "negated"}}],
            }
            nodes_of(document).insert(0, node)

        edit_model_json(bundle, change, program="stage-0/program.pt2")
        assert "changes a tensor in place" in refusal(bundle, program="stage-0/program.pt2")

    @pytest.mark.parametrize("kind", ["custom_obj", "token", "constant_input", "nonsense"])
    def test_input_that_is_no_tensor(self, bundle: Path, kind: str) -> None:
        def change(document: dict[str, Any]) -> None:
            specs = document["graph_module"]["signature"]["input_specs"]
            specs[-1] = {kind: next(iter(specs[-1].values()))}

        edit_model_json(bundle, change)
        refusal(bundle)


class TestDocument:
    def test_other_schema(self, bundle: Path) -> None:
        edit_model_json(bundle, lambda d: d["schema_version"].update(major=9))
        with pytest.raises(UnsupportedVersion) as caught:
            load_program(open_bundle(bundle), 1)
        assert (caught.value.expected, caught.value.actual) == ("8", "9")

    @pytest.mark.parametrize(
        "text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"graph_module": 1}']
    )
    def test_no_such_document(self, bundle: Path, text: bytes) -> None:
        edit_members(bundle, lambda members, root: members.update({f"{root}/{MODEL_JSON}": text}))
        assert "is not what torch.export writes" in refusal(bundle)

    def test_later_keys_are_not_read(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            document["schema_version"]["minor"] = 99
            document["a_later_key"] = "__import__('os')"

        edit_model_json(bundle, change)
        load_program(open_bundle(bundle), 1)


def test_the_bombs_of_these_tests_do_go_off(tmp_path: Path) -> None:
    pickle.loads(bomb(tmp_path / "was-run"))
    assert (tmp_path / "was-run").exists()


class TestKeys:
    @pytest.mark.parametrize(
        ("member", "key", "place"),
        [
            (MODEL_JSON, "schema_version", "$.schema_version"),
            (MODEL_JSON, "target", "$.graph_module.graph.nodes[0].target"),
            (WEIGHTS_JSON, "config", "$.config"),
            (WEIGHTS_JSON, "use_pickle", "$.config."),
        ],
    )
    def test_twice(self, bundle: Path, member: str, key: str, place: str) -> None:
        def double(members: dict[str, bytes], root: str) -> None:
            name, first = f"{root}/{member}", f'"{key}":'.encode()
            assert first in members[name]
            doubled = first + _value(key) + b"," + first
            members[name] = members[name].replace(first, doubled, 1)

        edit_members(bundle, double)
        words = refusal(bundle)
        assert f"{member} is not what torch.export writes: {place}" in words
        assert words.endswith(" is there twice")

    @pytest.mark.parametrize(
        "where",
        [
            (),
            ("schema_version",),
            ("graph_module",),
            ("graph_module", "graph"),
            ("graph_module", "graph", "nodes", 0),
            ("graph_module", "graph", "nodes", 0, "inputs", 0),
            ("graph_module", "signature"),
            ("graph_module", "module_call_graph", 0),
        ],
    )
    def test_unknown_one_of_a_known_version(self, bundle: Path, where: tuple[Any, ...]) -> None:
        def add(document: dict[str, Any]) -> None:
            place: Any = document
            for key in where:
                place = place[key]
            place["extra"] = {"anything": 1}

        edit_model_json(bundle, add)
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where)
        assert f"${path}.extra is no key of it" in refusal(bundle)

    def test_unknown_one_of_a_later_version_is_not_read(self, bundle: Path) -> None:
        def add(document: dict[str, Any]) -> None:
            document["schema_version"]["minor"] = 21
            document["graph_module"]["graph"]["extra"] = 1

        edit_model_json(bundle, add)
        load_program(open_bundle(bundle), 1)


def _value(key: str) -> bytes:
    """A value that the key's type permits, so that only its being there twice is wrong."""
    known = {"target": b'"x"', "use_pickle": b"true", "config": b"{}"}
    version = b'{"major": 8, "minor": 1}'
    return known.get(key, version)
