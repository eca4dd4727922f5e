"""Hostile weight files, passed to `mmm.load`."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from functools import partial

import mmm
from benchmarks.reliability.corpus import Action, Workspace, hostile, pickle_calling, shell_pickle


def _load(workspace: Workspace, name: str, content: bytes) -> Action:
    return partial(mmm.load, workspace.write(name, content))


def _archive(files: dict[str, bytes]) -> bytes:
    """Returns a zip archive with a pickle, as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"version": b"3\n", "byteorder": b"little", **files}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def _safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@hostile
def pickle_calls_a_shell(workspace: Workspace) -> Action:
    """Contains a pickle without an archive."""
    return _load(workspace, "weights.pth", shell_pickle(workspace))


@hostile
def pickle_in_an_archive(workspace: Workspace) -> Action:
    """Contains a pickle in an archive as torch.save writes it."""
    return _load(workspace, "weights.pt", _archive({"data.pkl": shell_pickle(workspace)}))


@hostile
def pickle_in_a_model_folder(workspace: Workspace) -> Action:
    """Contains a pickle in a model folder of transformers."""
    workspace.write("pytorch_model.bin", _archive({"data.pkl": shell_pickle(workspace)}))
    workspace.write("config.json", '{"model_type": "vit_mae"}')
    return partial(mmm.load, workspace.root)


@hostile
def pickle_runs_python(workspace: Workspace) -> Action:
    """Calls the builtin exec."""
    return _load(workspace, "weights.pth", _archive({"data.pkl": pickle_calling("builtins", "exec", workspace.code)}))


@hostile
def pickle_evaluates_python(workspace: Workspace) -> Action:
    """Calls eval by its Python 2 name."""
    return _load(
        workspace, "weights.ckpt", pickle_calling("__builtin__", "eval", f"__import__('os').system({workspace.command!r})")
    )


@hostile
def pickle_reads_a_pickle(workspace: Workspace) -> Action:
    """Calls torch's own function for storages, which unpickles bytes without restriction."""
    inner = shell_pickle(workspace).decode("latin-1")
    content = (
        b"ctorch.storage\n_load_from_bytes\n(c_codecs\nencode\n(V" + inner.replace("\n", "\\u000a").encode() + b"\nVlatin1\ntRtR."
    )
    return _load(workspace, "weights.pth", _archive({"data.pkl": content}))


@hostile
def pickle_in_a_namespace(workspace: Workspace) -> Action:
    """Contains a call in the state of an argparse.Namespace, a class that occurs in official files."""
    content = b"cargparse\nNamespace\n)\x81" + shell_pickle(workspace)[:-1] + b"b."
    return _load(workspace, "weights.pth", _archive({"data.pkl": content}))


@hostile
def pickle_calls_getattr(workspace: Workspace) -> Action:
    """Calls getattr with an allowed module."""
    content = b"cbuiltins\ngetattr\n(ctorch\nTensor\nV__class__\ntR."
    return _load(workspace, "weights.pth", _archive({"data.pkl": content}))


@hostile
def pickle_of_an_ordered_dict(workspace: Workspace) -> Action:
    """Creates an allowed class from the result of a call."""
    return _load(
        workspace, "weights.pth", _archive({"data.pkl": b"ccollections\nOrderedDict\n(" + shell_pickle(workspace)[:-1] + b"tR."})
    )


@hostile
def pickle_of_numpy(workspace: Workspace) -> Action:
    """Calls numpy's functions that rebuild arrays, with an array of objects."""
    content = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n(I1\ntcnumpy\ndtype\n(VO8\ntRI00\n("
    return _load(workspace, "weights.pth", content + shell_pickle(workspace)[:-1] + b"ltb.")


@hostile
def pickle_calls_this_library(workspace: Workspace) -> Action:
    """Calls a function of this library that imports a file."""
    module = workspace.write("hostile_module.py", workspace.code)
    return _load(workspace, "weights.pth", pickle_calling("mmm.config.overrides", "use_file", str(module)))


@hostile
def pickle_of_a_huge_text(workspace: Workspace) -> Action:
    """Declares a far too large length of a text."""
    return _load(workspace, "weights.pth", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.")


@hostile
def pickle_nested_deeply(workspace: Workspace) -> Action:
    """Contains deeply nested lists."""
    return _load(workspace, "weights.pth", _archive({"data.pkl": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."}))


@hostile
def tar_of_the_old_format(workspace: Workspace) -> Action:
    """Contains a tar that torch once extracted and unpickled without restriction (CVE-2025-32434)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../../escaped"):
            member = tarfile.TarInfo(name)
            content = shell_pickle(workspace)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return _load(workspace, "weights.pth", buffer.getvalue())


@hostile
def torchscript_program(workspace: Workspace) -> Action:
    """Contains a TorchScript program instead of weights."""
    program = {
        "code/__torch__.py": workspace.code.encode(),
        "constants.pkl": shell_pickle(workspace),
        "data.pkl": shell_pickle(workspace),
    }
    return _load(workspace, "weights.pt", _archive(program))


@hostile
def numpy_archive_of_objects(workspace: Workspace) -> Action:
    """Contains an npz archive, whose members are pickles, with the file name of weights."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("weights.npy", object_array(workspace))
    return _load(workspace, "weights.pt", buffer.getvalue())


def object_array(workspace: Workspace) -> bytes:
    """Returns an .npy file of dtype object, whose values are a pickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + shell_pickle(workspace)


@hostile
def safetensors_with_a_huge_header(workspace: Workspace) -> Action:
    """Declares a header of a terabyte."""
    return _load(workspace, "model.safetensors", _safetensors(b"{}", length=1 << 40))


@hostile
def safetensors_with_offsets_beyond_the_end(workspace: Workspace) -> Action:
    """Declares offsets beyond the end of the file."""
    header = {"encoder.norm.weight": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}
    return _load(workspace, "model.safetensors", _safetensors(json.dumps(header).encode(), bytes(8)))


@hostile
def safetensors_whose_size_overflows(workspace: Workspace) -> Action:
    """Declares a shape whose number of values overflows to 0 in 64 bits."""
    header = {"x": {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 0]}}
    return _load(workspace, "model.safetensors", _safetensors(json.dumps(header).encode()))


@hostile
def safetensors_with_a_nested_header(workspace: Workspace) -> Action:
    """Contains deeply nested lists in the header."""
    return _load(workspace, "model.safetensors", _safetensors(b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))


@hostile
def safetensors_that_is_a_pickle(workspace: Workspace) -> Action:
    """Contains a pickle with the file name of safetensors."""
    return _load(workspace, "model.safetensors", shell_pickle(workspace))


@hostile
def config_json_nested_deeply(workspace: Workspace) -> Action:
    """Contains deeply nested lists in the config.json beside the weights."""
    workspace.write("model.safetensors", _safetensors(b"{}"))
    workspace.write("config.json", '{"model_type": ' + "[" * 100_000 + "]" * 100_000 + "}")
    return partial(mmm.load, workspace.root)


@hostile
def config_json_with_remote_code(workspace: Workspace) -> Action:
    """Contains auto_map, with which transformers imports a file of the folder."""
    workspace.write("hostile_modeling.py", workspace.code)
    auto = {"AutoModel": "hostile_modeling.Model", "AutoConfig": "hostile_modeling.Config"}
    workspace.write("config.json", json.dumps({"model_type": "vit_mae", "auto_map": auto, "trust_remote_code": True}))
    workspace.write("model.safetensors", _safetensors(b"{}"))
    return partial(mmm.load, workspace.root)


@hostile
def config_json_of_a_huge_model(workspace: Workspace) -> Action:
    """Declares a model of a hundred terabytes."""
    sizes = {"hidden_size": 1 << 24, "intermediate_size": 1 << 26, "num_attention_heads": 1, "num_hidden_layers": 10**9}
    workspace.write("config.json", json.dumps({"model_type": "vit_mae", **sizes}))
    workspace.write("model.safetensors", _safetensors(b"{}"))
    return partial(mmm.load, workspace.root)
