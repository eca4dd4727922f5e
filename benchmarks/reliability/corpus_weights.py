"""Hostile weight files, passed to `mmm.load`."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from functools import partial

import mmm
from benchmarks.reliability.corpus import Act, Place, hostile, reduction, system


def _load(place: Place, name: str, content: bytes) -> Act:
    return partial(mmm.load, place.put(name, content))


def _archive(files: dict[str, bytes]) -> bytes:
    """Returns a zip archive with a pickle, as torch.save writes it."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in {"version": b"3\n", "byteorder": b"little", **files}.items():
            archive.writestr(f"archive/{name}", content)
    return whole.getvalue()


def _safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@hostile
def pickle_calls_a_shell(place: Place) -> Act:
    """Contains a pickle without an archive."""
    return _load(place, "weights.pth", system(place))


@hostile
def pickle_in_an_archive(place: Place) -> Act:
    """Contains a pickle in an archive as torch.save writes it."""
    return _load(place, "weights.pt", _archive({"data.pkl": system(place)}))


@hostile
def pickle_under_the_hub_s_name(place: Place) -> Act:
    """Contains a pickle in a model folder of transformers."""
    place.put("pytorch_model.bin", _archive({"data.pkl": system(place)}))
    place.put("config.json", '{"model_type": "vit_mae"}')
    return partial(mmm.load, place.root)


@hostile
def pickle_runs_python(place: Place) -> Act:
    """Calls the builtin exec."""
    return _load(place, "weights.pth", _archive({"data.pkl": reduction("builtins", "exec", place.code)}))


@hostile
def pickle_evaluates_python(place: Place) -> Act:
    """Calls eval by its Python 2 name."""
    return _load(place, "weights.ckpt", reduction("__builtin__", "eval", f"__import__('os').system({place.command!r})"))


@hostile
def pickle_reads_a_pickle(place: Place) -> Act:
    """Calls torch's own function for storages, which unpickles bytes without restriction."""
    inner = system(place).decode("latin-1")
    content = (
        b"ctorch.storage\n_load_from_bytes\n(c_codecs\nencode\n(V" + inner.replace("\n", "\\u000a").encode() + b"\nVlatin1\ntRtR."
    )
    return _load(place, "weights.pth", _archive({"data.pkl": content}))


@hostile
def pickle_hides_in_options(place: Place) -> Act:
    """Contains a call in the state of an argparse.Namespace, a class that occurs in official files."""
    content = b"cargparse\nNamespace\n)\x81" + system(place)[:-1] + b"b."
    return _load(place, "weights.pth", _archive({"data.pkl": content}))


@hostile
def pickle_reaches_for_attributes(place: Place) -> Act:
    """Calls getattr with an allowed module."""
    content = b"cbuiltins\ngetattr\n(ctorch\nTensor\nV__class__\ntR."
    return _load(place, "weights.pth", _archive({"data.pkl": content}))


@hostile
def pickle_of_an_ordered_dict(place: Place) -> Act:
    """Creates an allowed class from the result of a call."""
    return _load(place, "weights.pth", _archive({"data.pkl": b"ccollections\nOrderedDict\n(" + system(place)[:-1] + b"tR."}))


@hostile
def pickle_of_numpy(place: Place) -> Act:
    """Calls numpy's functions that rebuild arrays, with an array of objects."""
    content = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n(I1\ntcnumpy\ndtype\n(VO8\ntRI00\n("
    return _load(place, "weights.pth", content + system(place)[:-1] + b"ltb.")


@hostile
def pickle_names_our_own(place: Place) -> Act:
    """Calls a function of this library that imports a file."""
    module = place.put("hostile_module.py", place.code)
    return _load(place, "weights.pth", reduction("mmm.config.overrides", "use_file", str(module)))


@hostile
def pickle_of_an_endless_text(place: Place) -> Act:
    """Declares a far too large length of a text."""
    return _load(place, "weights.pth", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.")


@hostile
def pickle_nested_for_ever(place: Place) -> Act:
    """Contains deeply nested lists."""
    return _load(place, "weights.pth", _archive({"data.pkl": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."}))


@hostile
def tar_of_the_old_format(place: Place) -> Act:
    """Contains a tar that torch once extracted and unpickled without restriction (CVE-2025-32434)."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../../escaped"):
            member = tarfile.TarInfo(name)
            content = system(place)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return _load(place, "weights.pth", whole.getvalue())


@hostile
def torchscript_program(place: Place) -> Act:
    """Contains a TorchScript program instead of weights."""
    program = {"code/__torch__.py": place.code.encode(), "constants.pkl": system(place), "data.pkl": system(place)}
    return _load(place, "weights.pt", _archive(program))


@hostile
def numpy_archive_of_objects(place: Place) -> Act:
    """Contains an npz archive, whose members are pickles, with the file name of weights."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("weights.npy", object_array(place))
    return _load(place, "weights.pt", whole.getvalue())


def object_array(place: Place) -> bytes:
    """Returns an .npy file of dtype object, whose values are a pickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + system(place)


@hostile
def safetensors_with_an_endless_header(place: Place) -> Act:
    """Declares a header of a terabyte."""
    return _load(place, "model.safetensors", _safetensors(b"{}", length=1 << 40))


@hostile
def safetensors_with_lying_offsets(place: Place) -> Act:
    """Declares offsets beyond the end of the file."""
    header = {"encoder.norm.weight": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}
    return _load(place, "model.safetensors", _safetensors(json.dumps(header).encode(), bytes(8)))


@hostile
def safetensors_whose_size_overflows(place: Place) -> Act:
    """Declares a shape whose number of values overflows to 0 in 64 bits."""
    header = {"x": {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 0]}}
    return _load(place, "model.safetensors", _safetensors(json.dumps(header).encode()))


@hostile
def safetensors_with_a_nested_header(place: Place) -> Act:
    """Contains deeply nested lists in the header."""
    return _load(place, "model.safetensors", _safetensors(b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))


@hostile
def safetensors_that_is_a_pickle(place: Place) -> Act:
    """Contains a pickle with the file name of safetensors."""
    return _load(place, "model.safetensors", system(place))


@hostile
def config_json_nested_for_ever(place: Place) -> Act:
    """Contains deeply nested lists in the config.json beside the weights."""
    place.put("model.safetensors", _safetensors(b"{}"))
    place.put("config.json", '{"model_type": ' + "[" * 100_000 + "]" * 100_000 + "}")
    return partial(mmm.load, place.root)


@hostile
def config_json_with_remote_code(place: Place) -> Act:
    """Contains auto_map, with which transformers imports a file of the folder."""
    place.put("hostile_modeling.py", place.code)
    auto = {"AutoModel": "hostile_modeling.Model", "AutoConfig": "hostile_modeling.Config"}
    place.put("config.json", json.dumps({"model_type": "vit_mae", "auto_map": auto, "trust_remote_code": True}))
    place.put("model.safetensors", _safetensors(b"{}"))
    return partial(mmm.load, place.root)


@hostile
def config_json_with_numbers_that_do_not_fit(place: Place) -> Act:
    """Declares a model of a hundred terabytes."""
    sizes = {"hidden_size": 1 << 24, "intermediate_size": 1 << 26, "num_attention_heads": 1, "num_hidden_layers": 10**9}
    place.put("config.json", json.dumps({"model_type": "vit_mae", **sizes}))
    place.put("model.safetensors", _safetensors(b"{}"))
    return partial(mmm.load, place.root)
