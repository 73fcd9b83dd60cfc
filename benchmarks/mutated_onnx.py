"""Damaged ONNX files: what is read must compute what ONNX Runtime computes, all else must be refused as a ModelError.

    python benchmarks/mutated_onnx.py [--count 10000] [--seed 0]

Files are damaged by flipped bytes, by truncation, and by bytes that are inserted or cut out.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from mixtrain_jax import foreign
from mixtrain_jax.errors import ModelError

TOLERANCE = 1e-4  # relative to the largest logit


def graph(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: list[int | str],
    opset: int = 17,
    output: str = "logits",
) -> onnx.ModelProto:
    """A model of one input `images` and one output."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    ir_version = 8 if opset < 19 else 10
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def mlp(seed: int = 0, opset: int = 13) -> onnx.ModelProto:
    """Two layers by MatMul and Add, the batch open."""
    normal = np.random.default_rng(seed).normal
    weights = {"w1": normal(size=(6, 8)), "b1": normal(size=8), "w2": normal(size=(8, 3)), "b2": normal(size=3)}
    nodes = [
        helper.make_node("MatMul", ["images", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["d"]),
        helper.make_node("Add", ["b2", "d"], ["logits"]),
    ]
    return graph(nodes, {k: v.astype(np.float32) for k, v in weights.items()}, ["n", 6], opset)


def convnet(seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """Convolution, batch normalisation, pooling and a dense layer, as PyTorch exports them, the batch open."""
    normal = np.random.default_rng(seed).normal
    weights = {
        "conv.weight": normal(size=(4, 1, 3, 3)) / 3,
        "conv.bias": normal(size=4),
        "bn.weight": normal(size=4),
        "bn.bias": normal(size=4),
        "bn.mean": normal(size=4),
        "bn.var": normal(size=4) ** 2 + 0.1,
        "fc.weight": normal(size=(3, 16)) / 4,
        "fc.bias": normal(size=3),
    }
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "dilations": [1, 1], "group": 1}
    bn = ["a", "bn.weight", "bn.bias", "bn.mean", "bn.var"]
    nodes = [
        helper.make_node("Conv", ["images", "conv.weight", "conv.bias"], ["a"], "/conv/Conv", **window),
        helper.make_node("BatchNormalization", bn, ["b"], "/bn/BatchNormalization", epsilon=1e-5, momentum=0.9),
        helper.make_node("Relu", ["b"], ["c"], "/Relu"),
        helper.make_node("MaxPool", ["c"], ["d"], "/pool/MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["d"], ["e"], "/Flatten", axis=1),
        helper.make_node("Gemm", ["e", "fc.weight", "fc.bias"], ["logits"], "/fc/Gemm", alpha=1.0, beta=1.0, transB=1),
    ]
    return graph(nodes, {k: v.astype(np.float32) for k, v in weights.items()}, ["n", 1, 8, 8], opset)


def residual(seed: int = 0, opset: int = 18) -> onnx.ModelProto:
    """A residual block, a mean over pixels, and a reshape whose shape is computed from that of the images."""
    normal = np.random.default_rng(seed).normal
    weights = {
        "w1": normal(size=(2, 2, 3, 3)) / 4,
        "w2": normal(size=(2, 2, 1, 1)),
        "b2": normal(size=2),
        "fc": normal(size=(2, 3)),
    }
    weights = {k: v.astype(np.float32) for k, v in weights.items()}
    known = {"zero": np.array(0), "rest": np.array([-1]), "first": np.array([0]), "pixels": np.array([2, 3])}
    nodes = [
        helper.make_node("Conv", ["images", "w1"], ["a"], auto_pad="SAME_UPPER", kernel_shape=[3, 3]),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1),
        helper.make_node("Conv", ["b", "w2", "b2"], ["c"]),
        helper.make_node("Add", ["c", "images"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("ReduceMean", ["e", "pixels"], ["f"], keepdims=1),
        helper.make_node("Shape", ["f"], ["g"]),
        helper.make_node("Gather", ["g", "zero"], ["h"], axis=0),
        helper.make_node("Unsqueeze", ["h", "first"], ["i"]),
        helper.make_node("Concat", ["i", "rest"], ["j"], axis=0),
        helper.make_node("Reshape", ["f", "j"], ["k"]),
        helper.make_node("MatMul", ["k", "fc"], ["logits"]),
    ]
    return graph(nodes, {**weights, **known}, [2, 2, 5, 5], opset)


def legacy(seed: int = 0, opset: int = 9) -> onnx.ModelProto:
    """Operators of opset 9 whose attributes became inputs later, and a Softmax over several axes."""
    normal = np.random.default_rng(seed).normal
    weights = {"w": normal(size=(4, 1, 3, 3)) / 3, "fc": normal(size=(36, 3)) / 6}
    statistics = {name: normal(size=4) ** 2 + 0.1 for name in ("scale", "bias", "mean", "var")}
    nodes = [
        helper.make_node("Pad", ["images"], ["a"], pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.5),
        helper.make_node("Conv", ["a", "w"], ["b"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["b", *statistics], ["c"], epsilon=1e-3),
        helper.make_node("Clip", ["c"], ["d"], min=0.0, max=6.0),
        helper.make_node("Slice", ["d"], ["e"], axes=[2, 3], starts=[1, -4], ends=[4, 99]),
        helper.make_node("Unsqueeze", ["e"], ["f"], axes=[2]),
        helper.make_node("Squeeze", ["f"], ["g"], axes=[2]),
        helper.make_node("Softmax", ["g"], ["h"], axis=2),
        helper.make_node("Split", ["h"], ["i", "j"], axis=3, split=[3, 1]),
        helper.make_node("Flatten", ["i"], ["k"], axis=1),
        helper.make_node("Dropout", ["k"], ["l"], ratio=0.5),
        helper.make_node("MatMul", ["l", "fc"], ["m"]),
        helper.make_node("ReduceMax", ["j"], ["n"], axes=[1, 2], keepdims=0),
        helper.make_node("Add", ["m", "n"], ["logits"]),
    ]
    weights = {name: value.astype(np.float32) for name, value in {**weights, **statistics}.items()}
    return graph(nodes, weights, ["n", 1, 6, 6], opset)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to eight of them changed, or cut short, or with a few inserted or cut out."""
    changed = bytearray(data)
    kind = rng.integers(10)
    if kind == 0:
        return data[: rng.integers(len(data))]
    if kind in (1, 2):
        start = int(rng.integers(len(data)))
        changed[start : start + (int(rng.integers(1, 9)) if kind == 1 else 0)] = rng.bytes(int(rng.integers(0, 9)))
        return bytes(changed)
    for _ in range(min(int(rng.geometric(0.6)), 8)):
        i = int(rng.integers(len(data)))
        changed[i] = changed[i] ^ (1 << rng.integers(8)) if kind < 7 else rng.integers(256)
    return bytes(changed)


def reference(data: bytes, images: np.ndarray) -> np.ndarray | None:
    """What ONNX Runtime computes; None where it refuses."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        (logits,) = session.run(None, {source.name: images})
    except Exception:  # its errors have no common base
        return None
    return logits


def agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two arrays are the same to the tolerance; NaN and infinities in the same places."""
    if ours.shape != theirs.shape or not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return False
    finite = np.isfinite(ours)
    scale = max(1.0, float(np.abs(theirs[finite]).max(initial=0)))
    return bool(np.all(np.abs(ours[finite] - theirs[finite]) <= TOLERANCE * scale))


def judge(data: bytes, folder: Path, shape: tuple[int, ...]) -> str:
    """What became of a file: "refused", "refused by ONNX Runtime alone", "same" or "different".

    Raises whatever else than a ModelError comes out of reading or applying it.
    """
    path = folder / "model.onnx"
    path.write_bytes(data)
    images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    try:
        model = foreign.load_onnx(path, max_bytes=2**20)
        with jax.disable_jit():  # operation by operation: far faster than to compile each of thousands of files
            ours = np.asarray(model.apply(model.params, images))
    except ModelError:
        return "refused"
    theirs = reference(data, images)
    if theirs is None:
        return "refused by ONNX Runtime alone"
    return "same" if agree(ours, theirs) else "different"


SEEDS = ((mlp, (4, 6)), (convnet, (4, 1, 8, 8)), (residual, (2, 2, 5, 5)), (legacy, (3, 1, 6, 6)))


def main() -> None:
    """Count what becomes of damaged files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    rng, start = np.random.default_rng(arguments.seed), time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    slowest, whole = 0.0, {make: make().SerializeToString() for make, _ in SEEDS}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.count):
            make, shape = SEEDS[i % len(SEEDS)]
            data, before = damaged(whole[make], rng), time.monotonic()
            try:
                found = judge(data, Path(folder), shape)
            except Exception as error:  # what must not happen is counted, and kept to be looked at
                found = f"raised {type(error).__name__}"
            counts[found] += 1
            slowest = max(slowest, time.monotonic() - before)
            if found == "different" or found.startswith("raised"):
                kept = Path(tempfile.gettempdir()) / f"mutated_onnx_{arguments.seed}_{i}.onnx"
                kept.write_bytes(data)
                print(f"{found}: {kept} (of {make.__name__})")
    print(f"{arguments.count} files in {time.monotonic() - start:.0f} s, the slowest {slowest:.1f} s")
    for found, count in counts.most_common():
        print(f"{count:8} {found}")


if __name__ == "__main__":
    main()
