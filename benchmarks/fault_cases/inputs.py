"""Files and names from outside: configs, parameters, certificates, ONNX files, paths."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import struct
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np

from mixtrain_jax import __version__, certify, cli, config, doctor, foreign
from mixtrain_jax.certify import certificates
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.config import Config
from mixtrain_jax.errors import ConfigError, ModelError
from mixtrain_jax.fingerprints import by_name, fingerprint, manifest
from mixtrain_jax.foreign import import_path
from mixtrain_jax.training.rundir import RunDir

from .trials import TYPED, Trial, captured, command, damaged, judged, pick, spawned

FIELDS = [*Config().flags(), "objective.steps", "mixing.share"]
WORDS = ["digits", "mlp", "ibp", "crown", "robust", "mixtrain", "epoch", "nan", "inf", "", "\0", "é\u202e", "x" * 4096]
SHIPPED = Path(__file__).parents[2] / "configs"


def value(rng: np.random.Generator, depth: int = 0) -> Any:
    """A value that TOML can say, often one that a field takes."""
    match int(rng.integers(9 if depth < 2 else 6)):
        case 0:
            return pick(rng, (0, 1, -1, 2, 16, 128, 2**31, 2**63 - 1, -(2**63), 10**400))
        case 1:
            return pick(rng, (0.0, 0.5, 1.0, -0.0, 1e-320, 1e308, -1.5, math.inf, -math.inf, math.nan))
        case 2:
            return bool(rng.integers(2))
        case 3:
            return str(pick(rng, WORDS))
        case 4:
            return float(rng.normal())
        case 5:
            return int(rng.integers(-5, 2000))
        case 6 | 7:
            return [value(rng, depth + 1) for _ in range(rng.integers(4))]
    return {str(pick(rng, [*WORDS[:8], *FIELDS])): value(rng, depth + 1) for _ in range(rng.integers(3))}


def toml(x: Any) -> str:
    """A value as TOML."""
    if isinstance(x, bool):
        return str(x).lower()
    if isinstance(x, str):
        return json.dumps(x, ensure_ascii=True)
    if isinstance(x, list):
        return f"[{', '.join(map(toml, x))}]"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(inner)}" for name, inner in x.items()) + "}"
    return str(x)


def configs(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """X1: config files made at random or damaged, and overrides on the command line."""
    shipped = [path.read_bytes() for path in sorted(SHIPPED.glob("*.toml"))]
    path = tmp / "made.toml"
    for number, draw in spawned(rng, count):
        if number % 5 == 4:
            yield Trial("overrides", functools.partial(_overrides, _arguments(draw)))
            continue
        if number % 2:
            text = damaged(pick(draw, shipped), draw)
        else:
            chosen = draw.choice(FIELDS, int(draw.integers(1, 5)), replace=False)
            text = "\n".join(f"{name} = {toml(value(draw))}" for name in chosen).encode(errors="replace")
        yield Trial(f"the file {text[:200]!r}", functools.partial(_config_file, path, text))


def _config_file(path: Path, text: bytes) -> str:
    path.write_bytes(text)

    def right(found: Config) -> bool:
        asked, flags = tomllib.loads(text.decode()), found.flags()
        of_tables = {f"{table}.{name}": x for table in asked if table != "seed" for name, x in asked[table].items()}
        wanted = json.loads(json.dumps(of_tables | {"seed": asked.get("seed", 0)}))
        wanted |= {f"{table}.name": found.name_of(table) for table in config.CHOICES}
        unnamed = not any(name.endswith(".name") for name in of_tables)
        return {**(Config().flags() if unnamed else flags), **wanted} == flags

    return judged(lambda: config.load(str(path), path.parent), right, [str(path)])


def _arguments(rng: np.random.Generator) -> list[str]:
    arguments = []
    for _ in range(rng.integers(1, 4)):
        name = str(pick(rng, [*FIELDS, "workdir", "nothing"]))
        made = value(rng)
        values = made if isinstance(made, list) else [made]
        shown = [str(each) if rng.integers(2) else str(pick(rng, WORDS)) for each in values]
        arguments += [f"--{name.replace('_', '-') if rng.integers(2) else name}", *shown[: rng.integers(4)]]
    return arguments


def _overrides(arguments: list[str]) -> str:
    found = []

    def parse() -> int:
        found.append(cli.parse(list(arguments), SHIPPED))
        return 0

    try:
        code, out, err = captured(parse)
    except ConfigError as error:
        return "" if str(error) else f"no message for {arguments}"
    if found:
        dataclasses.replace(found[0][0])  # checks every value again
        return ""
    told = out + err
    return "" if code == 2 and told and "Traceback" not in told else f"exit code {code} for {arguments}: {told[-200:]}"


def parameters(rng: np.random.Generator) -> dict[str, Any]:
    """A small tree of arrays."""
    kernel, bias = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    return {"params": {"dense": {"kernel": kernel, "bias": bias}, "scale": np.float32([1, 2])}}


def npz(tree: Any, compressed: bool) -> bytes:
    """A tree as `read_params` reads it."""
    buffer = io.BytesIO()
    flat = {name.replace(".", "/"): leaf for name, leaf in by_name(tree).items()}
    (np.savez_compressed if compressed else np.savez)(buffer, **flat)
    return buffer.getvalue()


def archive(**members: bytes) -> bytes:
    """A zip of these files, compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def npy_header(shape: str, dtype: str = "'<f4'") -> bytes:
    """The first bytes of an `.npy` file."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def inflating(start: bytes, size: int) -> bytes:
    """A zip with one member `a.npy`, `start` and then `size` zeros, made by repeating a part of the deflated stream."""
    packer, part = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(2**24)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    repeated = packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = first + repeated * (size // len(part)) + packer.flush(zlib.Z_FINISH)
    crc, total = zlib.crc32(start), min(len(start) + size, 2**32 - 2)
    name, about = b"a.npy", struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, crc, len(stream), total)
    member = b"PK\3\4" + about + struct.pack("<HH", len(name), 0) + name + stream
    entry = b"PK\1\2" + struct.pack("<H", 20) + about + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    return member + entry + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(member), 0)


def shortened(data: bytes) -> bytes:
    """An `.npz` file, not compressed, whose first header was changed to say a tenth of the entries."""
    return data.replace(b"'shape': (5000,)", b"'shape': (500,) ", 1)


def bombs() -> dict[str, tuple[str, bytes]]:
    """Files that ask for far more than they are: kind and content by name."""
    pickled = io.BytesIO()
    np.savez(pickled, a=np.array([{"code": print}], dtype=object))
    ext = b"\xc7\x18\x01" + b"\x93\x91\x01\xa6object\xc4\x0c" + bytes(12)
    return {
        "an inflation bomb of 4 GB": (".npz", inflating(npy_header(f"({2**30},)"), 2**32)),
        "a header of fewer entries than there are": (".npz", shortened(npz({"a": np.ones(5000)}, False))),
        "a declared array of 2**60 entries": (".npz", archive(**{"a.npy": npy_header(f"({2**60},)") + bytes(64)})),
        "a declared array of 2**31 entries": (".npz", archive(**{"a.npy": npy_header(f"({2**31},)") + bytes(64)})),
        "a negative shape": (".npz", archive(**{"a.npy": npy_header("(-3,)") + bytes(64)})),
        "a header that is code": (".npz", archive(**{"a.npy": npy_header("__import__('os')") + bytes(64)})),
        "an object array": (".npz", pickled.getvalue()),
        "a list of 2**32 - 1 entries": (".msgpack", b"\xdd\xff\xff\xff\xff\x00"),
        "a map of 2**32 - 1 entries": (".msgpack", b"\xdf\xff\xff\xff\xff\xa1a\x00"),
        "bytes of 4 GB": (".msgpack", b"\x81\xa1a\xc6\xff\xff\xff\xff\x00"),
        "100,000 lists inside each other": (".msgpack", b"\x91" * 100_000 + b"\x00"),
        "an array of objects": (".msgpack", b"\x81\xa1a" + ext),
        "strings": (".npz", npz({"a": np.array(["text", "more"])}, False)),
        "complex numbers": (".npz", npz({"a": np.array([1j])}, False)),
        "dates": (".npz", npz({"a": np.array(["2020-01-01"], "datetime64[D]")}, False)),
        "strings ": (".msgpack", flax.serialization.msgpack_serialize({"a": np.array([b"text", b"more"])})),
        "no file": (".npz", b""),
        "an empty zip": (".npz", archive()),
    }


def foreign_files(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """X4: damaged files of parameters and of certificates, bombs, and arrays of objects."""
    tree = parameters(np.random.default_rng(0))
    whole = {
        "params.npz": npz(tree, False),
        "packed.npz": npz(tree, True),
        "params.msgpack": flax.serialization.to_bytes(tree),
    }
    proofs = tmp / "certificates.jsonl"
    certificates.write(proofs, some_certificates())
    text = proofs.read_bytes()
    run = ended_run(tmp / "run")
    table = (run / "certificates.npz").read_bytes()
    made = bombs()
    for number, draw in spawned(rng, count):
        if number < len(made):
            name = list(made)[number]
            suffix, content = made[name]
            yield Trial(name, functools.partial(_refused_parameters, tmp / f"bomb{suffix}", content))
            continue
        match number % 5:
            case 0 | 1 | 2 as kind:
                name = list(whole)[kind]
                content = damaged(whole[name], draw)
                yield Trial(f"a damaged {name}", functools.partial(_damaged_parameters, tmp / name, content, tree))
            case 3:
                content = damaged(text, draw)
                yield Trial("damaged certificates", functools.partial(_damaged_certificates, proofs, content))
            case 4:
                content = damaged(table, draw)
                yield Trial("a damaged certificates.npz", functools.partial(_damaged_table, run, content))


def _refused_parameters(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return judged(lambda: import_path.read_params(path), None, [str(path)])


def _damaged_parameters(path: Path, content: bytes, tree: Any) -> str:
    path.write_bytes(content)

    def right(found: Any) -> bool:
        if path.suffix == ".msgpack":  # has no hash, so that other numbers are no surprise
            theirs = flax.serialization.msgpack_restore(content)
            return manifest(by_name(found)) == manifest(by_name(jax.tree.map(jax.numpy.asarray, theirs)))
        return manifest(by_name(found)) == manifest(by_name(tree))

    return judged(lambda: import_path.read_params(path), right, [str(path)])


def some_certificates() -> certificates.Certificates:
    """Certificates as a file holds them; of no network."""
    header = certificates.Header("0" * 64, "1" * 64, "linf", (0.0, 1.0), (2, 2, 1), 5, {"jax": "0.10"})
    records = [certificates.Certificate(i, f"{i}" * 64, i % 3, 0.1, "crown", 0.5 + i) for i in range(4)]
    return certificates.Certificates(header, certificates.sealed(header, records))


def _damaged_certificates(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    sound = some_certificates()

    def right(found: certificates.Certificates) -> bool:
        pairs = zip(found.records, certificates.intact(found), strict=True)
        return all(not whole or (record in sound.records and found.header == sound.header) for record, whole in pairs)

    return judged(lambda: certify.read(path), right, [str(path)])


def ended_run(folder: Path, count: int = 20) -> Path:
    """The folder of a run that has ended, as `doctor` wants it."""
    params = {"dense": {"kernel": np.full((4, 3), 0.5, np.float32)}}
    with Checkpoints(folder / "checkpoints") as saved:
        saved.save(20, {"step": np.int64(20), "seconds": np.float64(1), "state": {"params": params}})
    draw = np.random.default_rng(0)
    know = {name: np.arange(count) < n for name, n in (("clean", 15), ("attacked", 12), ("verified", 9))}
    proved_by = np.where(know["verified"], "ibp", "")
    buffer = io.BytesIO()
    labels = draw.integers(0, 10, count).astype(np.int32)
    np.savez_compressed(buffer, labels=labels, **know, proved_by=proved_by)
    summary = {
        **{"clean_accuracy": 15 / count, "attacked_accuracy": 12 / count, "verified_accuracy": 9 / count},
        **{"test_examples": count, "verified_by": {"ibp": 9}, "step": 20, "params_sha256": fingerprint(params)},
        "versions": {"mixtrain_jax": __version__},
    }
    (folder / "config.json").write_text(json.dumps(Config().to_json()))
    (folder / ".lock").write_text(f"process 1 on {os.uname().nodename}\n")
    (folder / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    (folder / "report.html").write_text("<!doctype html>\n<html></html>\n")
    (folder / "certificates.npz").write_bytes(buffer.getvalue())
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _damaged_table(run: Path, content: bytes) -> str:
    path = run / "certificates.npz"
    sound = path.read_bytes()
    try:
        path.write_bytes(content)
        faults = [finding for finding in doctor.examine(run) if finding.verdict == "fault"]
        others = [finding for finding in faults if finding.subject != path.name]
        if others:
            return f"found fault with {others[0]}"
        if faults:
            return ""
        with zipfile.ZipFile(io.BytesIO(sound)) as before, zipfile.ZipFile(io.BytesIO(content)) as after:
            used = [f"{name}.npy" for name in ("labels", "clean", "attacked", "verified", "proved_by")]
            same = all(before.read(name) == after.read(name) for name in used)
        return "" if same else "took a damaged file for whole"
    finally:
        path.write_bytes(sound)


NAMES = [
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "",
        "~",
        "~root",
        "-",
        "--",
        "con",
        "a/b/../../..",
        "digits.toml/..",
    ),
    *(
        "a\0b",
        "\0",
        "x" * 4096,
        "x/" * 2048,
        "é" * 300,
        "\u202egnp.exe",
        "a\nb",
        "\x1b[31m",
        "*",
        "$(id)",
        "a b",
        "a\\b",
    ),
    *("\udcff", "/dev/null", "/dev/zero", "/proc/self/mem", "file:///etc/passwd", "http://localhost/a"),
]


def names(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """X7: names of configs, folders, models, modules, parameters and files beside a model that lead elsewhere."""
    ways: dict[str, Callable[[str], str]] = {
        "config": _config_name,
        "config file": lambda name: _config_name(f"{name}.toml"),
        "workdir": functools.partial(_workdir, tmp),
        "model": lambda name: judged(lambda: foreign.load_model(name)),
        "onnx": lambda name: judged(lambda: foreign.load_onnx(tmp / f"{name}.onnx")),
        "module": lambda name: judged(lambda: foreign.load_model(f"{name}:main")),
        "attribute": lambda name: judged(lambda: import_path.load_import_path(f"math:{name}")),
        "parameters": lambda name: judged(lambda: import_path.read_params(Path(f"{name}.npz"))),
        "certificates": lambda name: judged(lambda: certify.read(tmp / name)),
        "doctor": lambda name: command(lambda: cli.doctor([f"./{name}" if name.startswith("-") else name])),
        "external data": functools.partial(_external, tmp),
    }
    pairs = [(way, name) for name in NAMES for way in ways]
    order = rng.permutation(len(pairs))
    for i in order[:count]:
        way, name = pairs[i]
        yield Trial(f"{way} {name[:40]!r}", functools.partial(ways[way], name))


def _config_name(name: str) -> str:
    wrong = judged(lambda: config.load(name, SHIPPED))
    if wrong or name.startswith("-"):  # an option
        return wrong
    return command(lambda: cli.train([name], SHIPPED))


def _workdir(tmp: Path, name: str) -> str:
    """A folder is made where the name says, or not at all, and then in one sentence."""
    if name.startswith(("/", "~")) or ".." in name:
        return ""  # a user may name any folder
    target = tmp / "runs" / name

    def act() -> None:
        with RunDir(target).opened(Config()):
            pass

    try:
        act()
    except TYPED as error:
        return "" if "workdir" in str(error) else f"says only {error}"
    return "" if (target / "config.json").is_file() else "made another folder"


def _external(tmp: Path, location: str) -> str:
    """Weights beside an ONNX file are read from its own folder alone."""
    import onnx
    from onnx import helper

    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 3], data_location=1)
    try:
        weights.external_data.add(key="location", value=location)
    except (ValueError, UnicodeEncodeError):  # no text of a protobuf
        return ""
    weights.external_data.add(key="length", value="48")
    nodes = [helper.make_node("MatMul", ["images", "w"], ["logits"])]
    ends = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("images", ["n", 4]), ("logits", None))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], [weights])
    with tempfile.TemporaryDirectory(dir=tmp) as folder:
        (Path(folder) / "secret").write_bytes(bytes(48))
        (inner := Path(folder) / "model").mkdir()
        (inner / "link").symlink_to("../secret")
        for at in {location, "../secret", "link"}:
            weights.external_data[0].value = at
            graph.initializer[0].CopyFrom(weights)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            (inner / "model.onnx").write_bytes(model.SerializeToString())
            if wrong := judged(lambda: foreign.load_onnx(inner / "model.onnx"), None, ["model.onnx"]):
                return f"{at!r} {wrong}"
    return ""


def onnx_files(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """X2: as benchmarks/mutated_onnx.py, whose ten thousand are the whole of it."""
    import mutated_onnx

    for number, draw in spawned(rng, count):
        make, shape = mutated_onnx.SEEDS[number % len(mutated_onnx.SEEDS)]
        data = mutated_onnx.damaged(make().SerializeToString(), draw)

        def act(data: bytes = data, shape: tuple[int, ...] = shape) -> str:
            try:
                found = mutated_onnx.judge(data, tmp, shape)
            except ModelError as error:  # pragma: no cover  judge knows them
                return str(error)
            return "computes something else than ONNX Runtime" if found == "different" else ""

        yield Trial(f"a damaged {make.__name__}", act)
